"""Measures the engine on a GPU with the shapes of Llama-2-7B, beside other engines that run the same weights in Python.

`make bench-gpu`, or `python -m benchmarks.gpu` if only torch, transformers and bitsandbytes are installed.
"""
