"""Emits the kernels for the RMS norm of rows of activations, on its own or after adding another row to each row.

A row is a work item: each thread takes the next row until none is left. The argument block is described in
jit/arguments.py.
"""

from inference_server.kernels.emit.code import LANES, Code
from inference_server.kernels.emit.elements import element_bytes, load, rounded, store
from inference_server.kernels.emit.module import Emit
from inference_server.kernels.emit.values import Float, Int

_PARTIAL_SUMS = 4  # independent sums, which hide the latency of additions


def _square_sum(code: Code, row: Int, width: Int, is_bf16: bool) -> Float:
    """Return the sum of a row's squares."""
    step = LANES * element_bytes(is_bf16)
    end = row + width * element_bytes(is_bf16)
    whole = row + width // (_PARTIAL_SUMS * LANES) * (_PARTIAL_SUMS * step)
    sums = [code.variable(code.floats(0.0)) for _ in range(_PARTIAL_SUMS)]
    with code.loop(row, whole, _PARTIAL_SUMS * step) as position:
        for index, total in enumerate(sums):
            value = load(code, position + index * step, is_bf16)
            total.set(value.multiply_add(value, total.get()))
    with code.loop(whole, end, step) as position:
        value = load(code, position, is_bf16)
        sums[0].set(value.multiply_add(value, sums[0].get()))
    first, second, third, fourth = (total.get() for total in sums)
    result: Float = ((first + second) + (third + fourth)).sum()
    return result


def normalise(code: Code, source: Int, weight: Int, target: Int, width: Int, eps: Float, is_bf16: bool) -> None:
    """Write one row's normalised values times `weight`. They are rounded to the row's dtype before the multiplication.

    `target` may be `source`.
    """
    mean = _square_sum(code, source, width, is_bf16) / width.to_float()
    factor = 1.0 / (mean + eps).square_root()
    size = element_bytes(is_bf16)
    with code.loop(0, width * size, LANES * size) as offset:
        normed = rounded(code, load(code, source + offset, is_bf16) * factor, is_bf16)
        store(code, load(code, weight + offset, is_bf16) * normed, target + offset, is_bf16)


def make_rms_norm(is_bf16: bool) -> Emit:
    """Return the function that emits the kernel `rms_norm`.

    `is_bf16`: True if x, weight and out are bfloat16, False for float32.
    """

    def rms_norm(code: Code, block: Int) -> None:
        x, weight, out, num_rows, width = (code.argument(block, index) for index in range(3, 8))
        eps, row_bytes = code.float_argument(block, 8), width * element_bytes(is_bf16)
        with code.work_items(block, num_rows) as row:
            place = row * row_bytes
            normalise(code, x + place, weight, out + place, width, eps, is_bf16)

    return rms_norm


def make_add_rms_norm(is_bf16: bool) -> Emit:
    """Return the function that emits `add_rms_norm`: x += factor * delta in place, then out = the norm of x.

    `is_bf16`: True if x, delta, weight and out are bfloat16, False for float32.
    """

    def add_rms_norm(code: Code, block: Int) -> None:
        x, delta, weight, out, num_rows, width = (code.argument(block, index) for index in range(3, 9))
        eps, factor = code.float_argument(block, 9), code.float_argument(block, 10)
        row_bytes = width * element_bytes(is_bf16)
        with code.work_items(block, num_rows) as row:
            place = row * row_bytes
            with code.loop(place, place + row_bytes, LANES * element_bytes(is_bf16)) as offset:
                total = load(code, delta + offset, is_bf16) * factor + load(code, x + offset, is_bf16)
                store(code, total, x + offset, is_bf16)
            normalise(code, x + place, weight, out + place, width, eps, is_bf16)

    return add_rms_norm
