"""RMS norms of rows, and of sums of two rows. One program computes one row, which stays in registers."""

# mypy: disable-error-code="no-untyped-def,untyped-decorator,import-untyped"
import triton
import triton.language as tl
from torch import Tensor

from inference_server.gpu.kernels.compile_case import BFLOAT16_CAPABILITIES, CAPABILITIES, CompileCase, pointers

# Largest number of a row's elements for each thread. It is exceeded only if a row would need more than 16 warps.
_ELEMENTS_OF_THREAD = 16


@triton.jit
def rms_norm_kernel(
    x, delta, weight, out, x_stride, delta_stride, width, eps, HAS_DELTA: tl.constexpr, WIDTH: tl.constexpr
):
    """Program r: the norm of row r of x. HAS_DELTA: row r of `delta` is added first, and the sum is written to x."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, WIDTH)
    inside = columns < width
    places = x + row * x_stride + columns
    dtype = x.dtype.element_ty
    wide = tl.load(places, mask=inside, other=0.0).to(tl.float32)
    if HAS_DELTA:
        wide += tl.load(delta + row * delta_stride + columns, mask=inside, other=0.0).to(tl.float32)
        total = wide.to(dtype)
        tl.store(places, total, mask=inside)
        wide = total.to(tl.float32)
    mean = tl.sum(wide * wide, 0) / width
    normed = (wide * tl.rsqrt(mean + eps)).to(dtype).to(tl.float32)
    factor = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * width + columns, (normed * factor).to(out.dtype.element_ty), mask=inside)


def _launch(x: Tensor, delta: Tensor | None, weight: Tensor, eps: float) -> Tensor:
    rows, width = x.shape
    out = x.new_empty(rows, width)
    if rows == 0:
        return out
    padded = triton.next_power_of_2(width)
    rms_norm_kernel[(rows,)](
        x,
        delta,
        weight,
        out,
        x.stride(0),
        0 if delta is None else delta.stride(0),
        width,
        eps,
        HAS_DELTA=delta is not None,
        WIDTH=padded,
        num_warps=_num_warps(padded),
    )
    return out


def _num_warps(padded: int) -> int:
    return min(16, max(1, padded // (32 * _ELEMENTS_OF_THREAD)))


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return the RMS norm of each row of x (num_rows, width); see ops.rms_norm. Rows may have any stride."""
    return _launch(x, None, weight, eps)


def add_rms_norm(hidden: Tensor, delta: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Add `delta` to `hidden` in place, and return the RMS norm of the sum; see ops.add_rms_norm."""
    return _launch(hidden, delta, weight, eps)


def compile_cases() -> list[CompileCase]:
    """Return the specialisations for offline compilation: three usual widths of rows, in both dtypes."""
    cases = []
    for dtype in ("fp16", "bf16"):
        for width in (1024, 4096, 8192):
            for name, delta in (("rms_norm", None), ("add_rms_norm", "*" + dtype)):
                signature = {"x": "*" + dtype, "weight": "*" + dtype, "out": "*" + dtype, "x_stride": "i32"}
                signature |= {"delta": delta} if delta else {}
                signature |= {"delta_stride": "i32", "width": "i32", "eps": "fp32"}
                constants = {"HAS_DELTA": delta is not None, "WIDTH": width}
                cases.append(
                    CompileCase(
                        f"{name} {width} {dtype}",
                        rms_norm_kernel,
                        signature,
                        constants | ({} if delta else {"delta": None}),
                        num_warps=_num_warps(width),
                        num_stages=3,
                        divisible=(*pointers(signature), "x_stride", "delta_stride", "width"),
                        capabilities=BFLOAT16_CAPABILITIES if dtype == "bf16" else CAPABILITIES,
                    )
                )
    return cases
