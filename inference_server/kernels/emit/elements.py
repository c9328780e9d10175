"""Loads and stores float32 or bfloat16 values as vectors of float32; `is_bf16` selects the format in memory."""

from inference_server.kernels.emit.code import LANES, Code
from inference_server.kernels.emit.types import FLOAT, INT16, INT32
from inference_server.kernels.emit.values import Int, Vector


def element_bytes(is_bf16: bool) -> int:
    """Return the size of a value in memory, in bytes."""
    return 2 if is_bf16 else 4


def load(code: Code, address: Int, is_bf16: bool, lanes: int = LANES) -> Vector:
    """Load `lanes` consecutive values."""
    if not is_bf16:
        return code.load_floats(address, lanes)
    return (code.load_vector(address, INT16, lanes, 2).widened(INT32) << 16).bits_as(FLOAT)


def store(code: Code, value: Vector, address: Int, is_bf16: bool) -> None:
    """Store consecutive values, rounded to the nearest."""
    if is_bf16:
        code.store(code.isa.to_bf16(code, value), address, 2)
    else:
        code.store(value, address, 4)


def rounded(code: Code, value: Vector, is_bf16: bool) -> Vector:
    """Return the values rounded to the format in memory, as a store and a load would."""
    if not is_bf16:
        return value
    return (code.isa.to_bf16(code, value).widened(INT32) << 16).bits_as(FLOAT)


def bf16_bits(value: Vector) -> Vector:
    """Round to the nearest bfloat16, ties to even. Returns int32 with the result in the upper half; NaN stays NaN."""
    bits = value.bits_as(INT32)
    nearest = bits + 0x7FFF + ((bits >> 16) & 1)
    result: Vector = value.is_nan().select(bits | 0x400000, nearest)
    return result & -65536


def exp(code: Code, x: Vector) -> Vector:
    """Return e**x within 2 units in the last place: e**-87 for x below -87, infinity above 88.3; NaN stays NaN.

    With x = n ln 2 + r, e**x = 2**n * e**r. Adding 1.5 * 2**23 rounds x / ln 2 to the integer n and leaves n in the low
    bits. From there n is shifted into the exponent. e**r is the polynomial of Cephes' expf.
    """
    lanes = x.lanes
    x = (x < -87.0).select(code.floats(-87.0, lanes), x)
    x = (x > 89.0).select(code.floats(89.0, lanes), x)
    magic = code.floats(12582912.0, lanes)
    shifted = x.multiply_add(1.44269504088896341, magic)
    n = shifted - magic
    r = n.multiply_add(-0.693359375, x)
    r = n.multiply_add(2.12194440054690583e-4, r)
    p = code.floats(1.9875691500e-4, lanes)
    for coefficient in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
        p = p.multiply_add(r, code.floats(coefficient, lanes))
    p = (r * r).multiply_add(p, r + 1.0)
    power = ((shifted.bits_as(INT32) << 23) + 0x3F800000).bits_as(FLOAT)
    return p * power


def log(code: Code, x: Vector) -> Vector:
    """Return the natural logarithm within 2 units in the last place. `x`: from 2**-126 to the largest float32.

    With x = 2**n * m and m between the square roots of 1/2 and 2, log x = n ln 2 + log m. log m is the polynomial of
    Cephes' logf. Results for other numbers are undefined.
    """
    lanes = x.lanes
    bits = x.bits_as(INT32)
    exponent = (bits - 0x3F3504F3).shift_right_signed(23)
    r = (bits - (exponent << 23)).bits_as(FLOAT) - 1.0
    n, square = exponent.to_float(), r * r
    p = code.floats(7.0376836292e-2, lanes)
    for coefficient in (
        -1.1514610310e-1,
        1.1676998740e-1,
        -1.2420140846e-1,
        1.4249322787e-1,
        -1.6668057665e-1,
        2.0000714765e-1,
        -2.4999993993e-1,
        3.3333331174e-1,
    ):
        p = p.multiply_add(r, code.floats(coefficient, lanes))
    correction = n.multiply_add(-2.12194440054690583e-4, p * r * square)
    return n.multiply_add(0.693359375, r + square.multiply_add(-0.5, correction))
