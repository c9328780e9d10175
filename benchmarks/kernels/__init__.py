"""Measures the products of linear layers: `python -m benchmarks.kernels`.

__main__ reads the command line, and starts part.py in one process for each instruction set and number of threads. part
uses shapes (the measured layers), subjects (Tailrace's backend and torch's own operations), timing, and bandwidth (the
bandwidth of the memory). instruction_counts is a command of its own: it counts instructions instead of times.
"""
