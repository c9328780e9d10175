"""Measures Tailrace and other engines in Python on a GPU, with the same weights in the shapes of Llama-2-7B.

`make bench-gpu`, or `python -m benchmarks.gpu` if only torch, transformers and bitsandbytes are installed.
"""
