"""The engine on a GPU with the shapes of Llama-2-7B, beside what else runs the same weights in Python.

`make bench-gpu`, or where only torch, transformers and bitsandbytes are at hand: `python -m benchmarks.gpu`.
"""
