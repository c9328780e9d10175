"""Measures the products of linear layers: `python -m benchmarks.kernels`.

__main__ (command line) -> part (one process for each instruction set and number of threads) -> shapes (which products),
subjects (Tailrace's backend and torch's own operations), timing, bandwidth (what the memory can deliver).
"""
