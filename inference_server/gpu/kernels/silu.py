"""The activation of a gated feed-forward layer: silu(gate) * up."""

# mypy: disable-error-code="no-untyped-def,untyped-decorator,import-untyped"
import triton
import triton.language as tl
from torch import Tensor

from inference_server.gpu.kernels.compile_case import BFLOAT16_CAPABILITIES, CAPABILITIES, CompileCase

# Number of columns of a program: eight for each of its threads, so that a thread loads 16 bytes at a time.
_COLUMNS = 1024


@triton.jit
def silu_mul_kernel(gate_up, out, stride, width, COLUMNS: tl.constexpr):
    """Program (r, i): COLUMNS columns of row r. The result of silu is rounded before the product, as in torch."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < width
    gate = tl.load(gate_up + row * stride + columns, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * stride + width + columns, mask=inside, other=0.0).to(tl.float32)
    dtype = out.dtype.element_ty
    activated = (gate / (1.0 + tl.exp(-gate))).to(dtype).to(tl.float32)
    tl.store(out + row * width + columns, (activated * up).to(dtype), mask=inside)


def silu_mul(gate_up: Tensor) -> Tensor:
    """Return silu(gate) * up, (num_rows, width), of gate_up (num_rows, 2 * width); see ops.silu_mul."""
    rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = gate_up.new_empty(rows, width)
    if rows > 0:
        silu_mul_kernel[(rows, triton.cdiv(width, _COLUMNS))](
            gate_up, out, gate_up.stride(0), width, COLUMNS=_COLUMNS, num_warps=4
        )
    return out


def compile_cases() -> list[CompileCase]:
    """Return the specialisations for offline compilation: both dtypes."""
    return [
        CompileCase(
            f"silu_mul {dtype}",
            silu_mul_kernel,
            {"gate_up": "*" + dtype, "out": "*" + dtype, "stride": "i32", "width": "i32"},
            {"COLUMNS": _COLUMNS},
            num_warps=4,
            num_stages=3,
            divisible=("gate_up", "out", "stride", "width"),
            capabilities=BFLOAT16_CAPABILITIES if dtype == "bf16" else CAPABILITIES,
        )
        for dtype in ("fp16", "bf16")
    ]
