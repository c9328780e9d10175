"""Checks and measures Tailrace on a GPU, beside other engines in Python with the same weights (docs/gpu.md).

`make bench-gpu`, or `python -m benchmarks.gpu` where only torch, Triton, transformers and bitsandbytes are installed.

__main__ (command line) -> supervisor (one process for each part, with time limits) -> part (runs the checks of a part)
-> probe, correctness, micro, benchmark, replay_profile. Those use models, runners and subjects. outcome (goals, summary)
reads the results. carry collects the packages for a machine without a network.
"""
