"""The product of a few rows of activations with int8 weights, such as bitsandbytes' codes. Activations stay 16-bit.

With so few rows, the time of the product is the time to read the codes. So the kernel copies the next tiles of codes to
shared memory while it computes with the current one. On an H200, the tilings keep copies of about 5 MB of codes in
flight, enough to hide the memory's latency at full bandwidth.

The codes are the left side of a product on tensor cores, so a single row of activations is padded to 8, not to 16.
With up to 32 rows, each warp computes its own share of the inputs. No other warp reads or converts these codes, and
even a program with few outputs occupies four warps. With more rows the warps share the outputs and the rows, since that
needs fewer registers.

Every program reads all rows of activations. So with many rows, a program computes more outputs, which reduces the
number of programs. Where this results in too few programs for the GPU, the inputs are split too, and a second kernel
adds the parts in a fixed order.
"""

# mypy: disable-error-code="no-untyped-def,untyped-decorator,import-untyped"
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from inference_server.gpu import reference
from inference_server.gpu.kernels import int8_row_by_row
from inference_server.gpu.kernels.attention_tiles import device_of
from inference_server.gpu.kernels.compile_case import BFLOAT16_CAPABILITIES, CompileCase, pointers
from inference_server.gpu.kernels.int8_codes import converted
from inference_server.gpu.kernels.int8_tiling import SPLIT_TILINGS, TILINGS, Tiling, choose_num_splits, choose_tiling
from inference_server.gpu.triton_support import interprets

# Number of outputs that a program of the reduction computes.
_REDUCED = 512


@triton.jit
def _sums_of_slices(
    x,
    codes,
    outputs,
    begin,
    end,
    num_rows,
    num_inputs,
    PACKED: tl.constexpr,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    SLICES: tl.constexpr,
    INPUTS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Return the sums (OUTPUTS, ROWS) over the inputs from begin to end; each warp adds up the inputs of one slice."""
    rows = tl.arange(0, ROWS)[None, :, None]
    inputs = (tl.arange(0, SLICES) * INPUTS)[:, None, None] + tl.arange(0, INPUTS)[None, None, :]
    lines = codes + outputs.to(tl.int64)[None, :, None] * num_inputs
    sums = tl.zeros((SLICES, OUTPUTS, ROWS), tl.float32)
    for start in tl.range(begin, end, SLICES * INPUTS, num_stages=STAGES):
        inside = start + inputs < end
        weights = tl.load(lines + start + inputs, mask=inside, other=0, eviction_policy="evict_first")
        places = x + rows * num_inputs + start + inputs
        activations = tl.load(places, mask=(rows < num_rows) & inside, other=0.0)
        weights = converted(weights, x.dtype.element_ty, PACKED)
        sums = tl.dot(weights, tl.trans(activations, 0, 2, 1), sums, input_precision="ieee")
    return tl.sum(sums, 0)


@triton.jit
def _sums(
    x,
    codes,
    outputs,
    begin,
    end,
    num_rows,
    num_inputs,
    PACKED: tl.constexpr,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Return the sums (OUTPUTS, ROWS) over the inputs from begin to end; each warp computes some of the outputs."""
    rows = tl.arange(0, ROWS)[:, None]
    inputs = tl.arange(0, INPUTS)[None, :]
    lines = codes + outputs.to(tl.int64)[:, None] * num_inputs
    sums = tl.zeros((OUTPUTS, ROWS), tl.float32)
    for start in tl.range(begin, end, INPUTS, num_stages=STAGES):
        inside = start + inputs < end
        weights = tl.load(lines + start + inputs, mask=inside, other=0, eviction_policy="evict_first")
        places = x + rows * num_inputs + start + inputs
        activations = tl.load(places, mask=(rows < num_rows) & inside, other=0.0)
        weights = converted(weights, x.dtype.element_ty, PACKED)
        sums = tl.dot(weights, tl.trans(activations), sums, input_precision="ieee")
    return sums


@triton.jit(do_not_specialize=["num_rows"])
def int8_linear_kernel(
    x,
    codes,
    scales,
    bias,
    out,
    num_rows,
    num_outputs,
    num_inputs,
    share,
    HAS_BIAS: tl.constexpr,
    IS_PART: tl.constexpr,
    PACKED: tl.constexpr,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    SLICES: tl.constexpr,
    INPUTS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Program (i, s): OUTPUTS outputs of up to ROWS rows of x (num_rows, num_inputs), over the inputs of split s.

    A split is `share` inputs, a multiple of SLICES * INPUTS. If IS_PART, the sums themselves are written to `out`
    (splits, num_rows, num_outputs) float32.
    """
    split = tl.program_id(1)
    outputs = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    # Indices past the last output read the codes of the last output, so the loads need no mask.
    lines = tl.minimum(outputs, num_outputs - 1)
    begin = split * share
    end = tl.minimum(begin + share, num_inputs)
    if SLICES == 1:
        result = _sums(x, codes, lines, begin, end, num_rows, num_inputs, PACKED, ROWS, OUTPUTS, INPUTS, STAGES)
    else:
        result = _sums_of_slices(
            x, codes, lines, begin, end, num_rows, num_inputs, PACKED, ROWS, OUTPUTS, SLICES, INPUTS, STAGES
        )
    written = outputs < num_outputs
    if IS_PART:
        out += split.to(tl.int64) * num_rows * num_outputs
    else:
        result *= tl.load(scales + outputs, mask=written, other=0.0)[:, None]
        if HAS_BIAS:
            result += tl.load(bias + outputs, mask=written, other=0.0).to(tl.float32)[:, None]
    rows = tl.arange(0, ROWS)[None, :]
    places = out + rows * num_outputs + outputs[:, None]
    tl.store(places, result.to(out.dtype.element_ty), mask=written[:, None] & (rows < num_rows))


@triton.jit
def reduce_kernel(
    parts,
    scales,
    bias,
    out,
    num_outputs,
    HAS_BIAS: tl.constexpr,
    SPLITS: tl.constexpr,
    OUTPUTS: tl.constexpr,
):
    """Program (i, r): add the SPLITS parts of OUTPUTS outputs of row r, first to last, then apply scales and bias."""
    row, num_rows = tl.program_id(1), tl.num_programs(1)
    outputs = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    inside = outputs < num_outputs
    result = tl.zeros((OUTPUTS,), tl.float32)
    for split in tl.static_range(SPLITS):
        line = (row + split * num_rows).to(tl.int64) * num_outputs
        result += tl.load(parts + line + outputs, mask=inside, other=0.0)
    result *= tl.load(scales + outputs, mask=inside, other=0.0)
    if HAS_BIAS:
        result += tl.load(bias + outputs, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * num_outputs + outputs, result.to(out.dtype.element_ty), mask=inside)


def int8_linear(x: Tensor, codes: Tensor, scales: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x times the transposed int8 weights, plus the bias; see ops.int8_linear. Up to 64 rows.

    A row's result depends neither on the other rows nor on their number, as long as that number stays in one of these
    ranges: 1 to 8, 9 to 16, 17 to 32, 33 to 64. Below compute capability 8.0, the only such range is 1 to 16, because
    torch multiplies more rows. Within a range, results agree bit for bit. Calls on GPUs of the same model return the
    same bits.
    """
    if x.shape[0] == 0:
        return x.new_empty(0, codes.shape[0])
    device = device_of(x)
    if device.has_tensor_cores:
        return multiply(x, codes, scales, bias, device.num_multiprocessors)
    if x.shape[0] <= int8_row_by_row.MAX_ROWS:
        return int8_row_by_row.multiply_row_by_row(x, codes, scales, bias)
    return reference.int8_linear(x, codes, scales, bias)


def multiply(x: Tensor, codes: Tensor, scales: Tensor, bias: Tensor | None, multiprocessors: int) -> Tensor:
    """Return the product on tensor cores, for 1 to 64 rows. `multiprocessors` determines the number of splits."""
    (num_rows, num_inputs), num_outputs = x.shape, codes.shape[0]
    tiling = choose_tiling(num_rows, num_outputs)
    splits = choose_num_splits(tiling, num_outputs, num_inputs, multiprocessors)
    share = triton.cdiv(triton.cdiv(num_inputs, tiling.step), splits) * tiling.step
    out = x.new_empty(num_rows, num_outputs)
    sums = out if splits == 1 else x.new_empty(splits, num_rows, num_outputs, dtype=torch.float32)
    has_bias = bias is not None
    int8_linear_kernel[(triton.cdiv(num_outputs, tiling.outputs), splits)](
        x,
        codes,
        scales,
        bias,
        sums,
        num_rows,
        num_outputs,
        num_inputs,
        share,
        HAS_BIAS=has_bias and splits == 1,
        IS_PART=splits > 1,
        PACKED=x.dtype != torch.float32 and not interprets(),
        **tiling.constants(),
        num_warps=tiling.num_warps,
        num_stages=tiling.num_stages,
    )
    if splits > 1:
        reduce_kernel[(triton.cdiv(num_outputs, _REDUCED), num_rows)](
            sums, scales, bias, out, num_outputs, HAS_BIAS=has_bias, SPLITS=splits, OUTPUTS=_REDUCED
        )
    return out


def _linear_case(dtype: str, tiling: Tiling, *, is_part: bool = False, has_bias: bool = False) -> CompileCase:
    signature = {"x": "*" + dtype, "codes": "*i8", "scales": "*fp32", "out": "*fp32" if is_part else "*" + dtype}
    signature |= dict.fromkeys(("num_rows", "num_outputs", "num_inputs", "share"), "i32")
    constants: dict[str, Any] = {"HAS_BIAS": has_bias, "IS_PART": is_part, "PACKED": True, **tiling.constants()}
    if has_bias:
        signature["bias"] = "*" + dtype
    else:
        constants["bias"] = None
    return CompileCase(
        f"int8_linear {tiling.rows} rows, {tiling.outputs} outputs{', part' if is_part else ''} {dtype}",
        int8_linear_kernel,
        signature,
        constants,
        tiling.num_warps,
        tiling.num_stages,
        divisible=(*pointers(signature), "num_outputs", "num_inputs", "share"),
        capabilities=BFLOAT16_CAPABILITIES,
    )


def _reduce_case(dtype: str, splits: int) -> CompileCase:
    signature = {"parts": "*fp32", "scales": "*fp32", "bias": "*" + dtype, "out": "*" + dtype, "num_outputs": "i32"}
    return CompileCase(
        f"int8_linear sum of {splits} parts {dtype}",
        reduce_kernel,
        signature,
        {"HAS_BIAS": True, "SPLITS": splits, "OUTPUTS": _REDUCED},
        num_warps=4,
        num_stages=3,
        divisible=(*pointers(signature), "num_outputs"),
        capabilities=BFLOAT16_CAPABILITIES,
    )


def compile_cases() -> list[CompileCase]:
    """Return the specialisations for offline compilation: all tilings, the reduction, and the product row by row."""
    cases = int8_row_by_row.compile_cases()
    for dtype in ("fp16", "bf16"):
        cases += [_linear_case(dtype, tiling, has_bias=tiling.rows == 8) for tiling in TILINGS]
        cases += [_linear_case(dtype, tiling, is_part=True) for tiling in SPLIT_TILINGS]
        cases += [_reduce_case(dtype, splits) for splits in (2, 8)]
    return cases
