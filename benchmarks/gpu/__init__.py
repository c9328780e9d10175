"""Checks Tailrace on a GPU, and compares its speed with other Python engines on the same weights (docs/gpu.md).

Run `make bench-gpu`, or `python -m benchmarks.gpu` on a machine with only torch, Triton, transformers and bitsandbytes.

__main__ reads the command line, and supervisor starts one process for each part, with time limits. In that process,
part.py runs the checks of a module in parts/. These modules use models, runners, subjects and timing. outcome compares
the results with goals and summarizes them. carry collects packages for a machine without a network.
"""
