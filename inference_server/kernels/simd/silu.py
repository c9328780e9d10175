"""Computes the gate of a gated MLP: silu(gate) * up, where silu(x) = x * sigmoid(x)."""

# mypy: disable-error-code="no-untyped-def"

import numpy as np

from inference_server.kernels.simd.elements import rounded, store
from inference_server.kernels.simd.vectors import add, div, exp, helper, load_float32, mul, splat, sub


@helper
def gated(gate, up, is_bf16):
    """Return silu(gate) * up.

    If `is_bf16`, silu(gate) is rounded to bfloat16 before the multiplication, as when torch computes silu and the
    product as separate operations.
    """
    one, zero = splat(np.float32(1.0)), splat(np.float32(0.0))
    return mul(rounded(div(gate, add(one, exp(sub(zero, gate)))), is_bf16), up)


@helper
def gate_rows(values, out, out_bytes, count, is_bf16):
    """Gate `count` rows of 16 gate outputs and their 16 up outputs, float32.

    Writes 16 results for each row, bfloat16 or float32, to rows that are `out_bytes` apart.
    """
    for row in range(count):
        place = values + row * 128
        store(out + row * out_bytes, gated(load_float32(place), load_float32(place + 64), is_bf16), is_bf16)
