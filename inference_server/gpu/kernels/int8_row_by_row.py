"""The int8 product for GPUs before compute capability 8.0, whose tensor cores Triton does not use.

Each program computes a few outputs of one row, with one multiplication and one addition for each code. The programs of
all rows that need the same codes start together, so all but the first read these codes from the L2 cache.
"""

# mypy: disable-error-code="no-untyped-def,untyped-decorator,import-untyped"
import torch
import triton
import triton.language as tl
from torch import Tensor

from inference_server.gpu.kernels.compile_case import BFLOAT16_CAPABILITIES, CAPABILITIES, CompileCase, pointers

# Above this number of rows, dequantising once and multiplying with cuBLAS is faster.
MAX_ROWS = 16

_OUTPUTS = 16
_INPUTS = 512


@triton.jit
def int8_row_kernel(
    x,
    codes,
    scales,
    bias,
    out,
    num_outputs,
    num_inputs,
    HAS_BIAS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
):
    """Program (r, i): OUTPUTS outputs of row r of x (num_rows, num_inputs). Each thread adds up its inputs first."""
    row = tl.program_id(0)
    outputs = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    inputs = tl.arange(0, INPUTS)
    # Indices past the last output read the codes of the last output, so the loads need no mask.
    lines = codes + tl.minimum(outputs, num_outputs - 1).to(tl.int64)[:, None] * num_inputs
    sums = tl.zeros((OUTPUTS, INPUTS), tl.float32)
    for start in range(0, num_inputs, INPUTS):
        inside = start + inputs < num_inputs
        activations = tl.load(x + row * num_inputs + start + inputs, mask=inside, other=0.0).to(tl.float32)
        weights = tl.load(lines + start + inputs[None, :], mask=inside[None, :], other=0)
        sums += activations[None, :] * weights.to(tl.float32)
    written = outputs < num_outputs
    result = tl.sum(sums, 1) * tl.load(scales + outputs, mask=written, other=0.0)
    if HAS_BIAS:
        result += tl.load(bias + outputs, mask=written, other=0.0).to(tl.float32)
    tl.store(out + row * num_outputs + outputs, result.to(out.dtype.element_ty), mask=written)


def multiply_row_by_row(x: Tensor, codes: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:
    """Return x (num_rows, num_inputs) times the transposed int8 weights, plus the bias.

    A row's result depends neither on the other rows nor on their number, bit for bit.
    """
    out = torch.empty(x.shape[0], codes.shape[0], dtype=x.dtype, device=x.device)
    int8_row_kernel[(x.shape[0], triton.cdiv(codes.shape[0], _OUTPUTS))](
        x,
        codes,
        scales,
        bias,
        out,
        codes.shape[0],
        x.shape[1],
        HAS_BIAS=bias is not None,
        OUTPUTS=_OUTPUTS,
        INPUTS=_INPUTS,
        num_warps=4,
    )
    return out


def compile_cases() -> list[CompileCase]:
    """Return the float16 specialisation for offline compilation: these older GPUs do not support bfloat16."""
    signature = {"x": "*fp16", "codes": "*i8", "scales": "*fp32", "bias": "*fp16", "out": "*fp16"}
    return [
        CompileCase(
            "int8_linear row by row fp16",
            int8_row_kernel,
            signature | {"num_outputs": "i32", "num_inputs": "i32"},
            {"HAS_BIAS": True, "OUTPUTS": _OUTPUTS, "INPUTS": _INPUTS},
            num_warps=4,
            num_stages=3,
            divisible=(*pointers(signature), "num_outputs", "num_inputs"),
            capabilities=tuple(sorted(set(CAPABILITIES) - set(BFLOAT16_CAPABILITIES))),
        )
    ]
