"""Computes the activation of a gated MLP: silu(gate) * up, where silu(x) = x * sigmoid(x)."""

from inference_server.kernels.emit.code import Code
from inference_server.kernels.emit.elements import element_bytes, exp, load, rounded, store
from inference_server.kernels.emit.module import Emit
from inference_server.kernels.emit.values import Int, Vector


def gated(code: Code, gate: Vector, up: Vector, is_bf16: bool) -> Vector:
    """Return silu(gate) * up.

    If `is_bf16`, silu(gate) is rounded to bfloat16 before the multiplication, as when torch computes silu and the
    product as separate operations.
    """
    return rounded(code, gate / (exp(code, 0.0 - gate) + 1.0), is_bf16) * up


def gate_rows(code: Code, values: Int, out: Int, out_bytes: Int, count: "Int | int", is_bf16: bool) -> None:
    """Compute silu(gate) * up for `count` rows, each with 16 gate outputs, then 16 up outputs, float32.

    Writes 16 results for each row, bfloat16 or float32. Input rows are 128 bytes apart, and result rows `out_bytes`.
    """
    with code.loop(0, count) as row:
        place = values + row * 128
        result = gated(code, code.load_floats(place), code.load_floats(place + 64), is_bf16)
        store(code, result, out + row * out_bytes, is_bf16)


def make_silu_mul(is_bf16: bool) -> Emit:
    """Return the function that emits the kernel `silu_mul`.

    `is_bf16`: True if gate_up and out are bfloat16, False for float32.
    """
    size = element_bytes(is_bf16)

    def silu_mul(code: Code, block: Int) -> None:
        gate_up, out = code.argument(block, 3), code.argument(block, 4)
        num_rows, width = code.argument(block, 5), code.argument(block, 6)
        with code.work_items(block, num_rows) as row:
            gates, target = gate_up + row * width * (2 * size), out + row * width * size
            with code.loop(0, width * size, 16 * size) as offset:
                gate = load(code, gates + offset, is_bf16)
                up = load(code, gates + width * size + offset, is_bf16)
                store(code, gated(code, gate, up, is_bf16), target + offset, is_bf16)

    return silu_mul
