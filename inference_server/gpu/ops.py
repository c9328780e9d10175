"""Operators of a forward pass on a GPU. Each call launches one Triton kernel, or two if sums are split across programs.

They are registered with torch as `torch.ops.tailrace.*`, so that profilers and the tests in tests/rehearsal record
one operator for each call. Where Triton cannot run, torch's operations compute the same (reference.py). They also
handle arguments that no kernel supports: float32 on a GPU, values narrower than keys, unusual widths of heads, and int8
products with many rows.

The kernels' activations are float16 or bfloat16. Arithmetic and accumulation are float32. The cache's dtype is that of
the activations.
"""

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from inference_server.gpu import reference
from inference_server.gpu.triton_support import has_triton, interprets

# Up to this number of rows, int8_linear multiplies by the codes directly. Above it, dequantising once and multiplying
# with cuBLAS is faster.
MAX_INT8_ROWS = 64

# The widest head that the attention kernels support.
MAX_HEAD_DIM = 256

_SCHEMAS = {
    "rms_norm": "(Tensor x, Tensor weight, float eps) -> Tensor",
    "add_rms_norm": "(Tensor(a!) hidden, Tensor delta, Tensor weight, float eps) -> Tensor",
    "silu_mul": "(Tensor gate_up) -> Tensor",
    "rope_and_write": (
        "(Tensor qkv, Tensor cos, Tensor sin, Tensor(a!) keys, Tensor(b!) values, Tensor rows, int num_heads, "
        "int num_kv_heads, Tensor? query_norm, Tensor? key_norm, float eps) -> Tensor"
    ),
    "paged_decode_attention": (
        "(Tensor query, Tensor keys, Tensor values, Tensor table, Tensor lengths, float scaling, int? sliding_window, "
        "float? softcap, int num_splits, Tensor? sinks=None) -> Tensor"
    ),
    "paged_prefill_attention": (
        "(Tensor query, Tensor keys, Tensor values, Tensor table, Tensor starts, Tensor lengths, int longest, "
        "float scaling, int? sliding_window, float? softcap, Tensor? sinks=None) -> Tensor"
    ),
    "int8_linear": "(Tensor x, Tensor codes, Tensor scales, Tensor? bias) -> Tensor",
}


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return the RMS norm of each row of x (num_rows, width), rounded to x's dtype, times `weight` (width,)."""
    return _call("rms_norm", x, weight, eps)


def add_rms_norm(hidden: Tensor, delta: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Add `delta` to `hidden` in place, both (num_rows, width), and return the RMS norm of the sum."""
    return _call("add_rms_norm", hidden, delta, weight, eps)


def silu_mul(gate_up: Tensor) -> Tensor:
    """Return silu(gate) * up, (num_rows, width), where gate_up (num_rows, 2 * width) is gate, then up."""
    return _call("silu_mul", gate_up)


def rope_and_write(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    keys: Tensor,
    values: Tensor,
    rows: Tensor,
    num_heads: int,
    num_kv_heads: int,
    query_norm: Tensor | None = None,
    key_norm: Tensor | None = None,
    eps: float = 0.0,
) -> Tensor:
    """Write rotated keys and values into the cache, and return the rotated queries, (num_tokens, num_heads, head_dim).

    Args:
        qkv: (num_tokens, (num_heads + 2 * num_kv_heads) * head_dim), contiguous.
        cos: (num_tokens, head_dim) float32, each angle in both halves of the row; contiguous.
        sin: The same for the sines.
        keys: (num_blocks, block_size, num_kv_heads, head_dim), contiguous.
        values: The same as `keys`.
        rows: (num_tokens,) int32 or int64, the tokens' rows of the cache; any stride.
        num_heads: Number of query heads.
        num_kv_heads: Number of key heads, and of value heads.
        query_norm: (head_dim,), the weight of an RMS norm of each query head before rotation (Qwen 3), or None.
        key_norm: The same for the key heads.
        eps: Epsilon of these norms.
    """
    return _call(
        "rope_and_write", qkv, cos, sin, keys, values, rows, num_heads, num_kv_heads, query_norm, key_norm, eps
    )


def paged_decode_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    table: Tensor,
    lengths: Tensor,
    scaling: float,
    sliding_window: int | None = None,
    softcap: float | None = None,
    num_splits: int = 0,
    sinks: Tensor | None = None,
) -> Tensor:
    """Attend with one query for each of n sequences. Launches two kernels if the keys are split, else one.

    A sequence with draft tokens counts as several sequences, which have the same block table and different lengths.
    The host never reads `table` and `lengths`, so a CUDA graph can record the call.

    Args:
        query: (n, num_heads, head_dim), contiguous; head_dim up to 256.
        keys: (num_blocks, block_size, num_kv_heads, head_dim), contiguous; block_size is a multiple of 16.
        values: The same shape as `keys`.
        table: (n, max_blocks) int32, the block tables; rows may have any stride.
        lengths: (n,) int32, the number of keys of each sequence; any stride. The result of a row of length 0 is finite.
        scaling: Factor that multiplies the scores.
        sliding_window: In tokens; None attends to all keys.
        softcap: c of c * tanh(score / c); None for no limit.
        num_splits: Number of parts in which each sequence's keys are computed; 0 selects it from n, num_kv_heads, max_blocks
            and the GPU's number of multiprocessors.
        sinks: (num_heads,) float32, or None: one score for each head that is part of the softmax but has no value.

    Returns:
        (n, num_heads, head_dim) in the query's dtype.
    """
    return _call(
        "paged_decode_attention",
        query,
        keys,
        values,
        table,
        lengths,
        scaling,
        sliding_window,
        softcap,
        num_splits,
        sinks,
    )


def paged_prefill_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    table: Tensor,
    starts: Tensor,
    lengths: Tensor,
    longest: int,
    scaling: float,
    sliding_window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Compute attention for n segments, which are the newest tokens of one sequence each.

    Each token attends to the keys up to its own position.

    Args:
        query: (num_tokens, num_heads, head_dim), contiguous: the tokens of all segments, concatenated.
        keys: See paged_decode_attention. They include the new tokens' keys.
        values: See paged_decode_attention. They include the new tokens' values.
        table: See paged_decode_attention.
        starts: (n + 1,) int32; the tokens of segment i are starts[i] to starts[i + 1] of `query`.
        lengths: (n,) int32, the number of keys of each sequence, including its new tokens, which are the last ones.
        longest: The largest number of tokens of a segment.
        scaling: Factor that multiplies the scores.
        sliding_window: In tokens; None attends to all keys so far.
        softcap: c of c * tanh(score / c); None for no limit.
        sinks: See paged_decode_attention.

    Returns:
        (num_tokens, num_heads, head_dim) in the query's dtype.
    """
    return _call(
        "paged_prefill_attention",
        query,
        keys,
        values,
        table,
        starts,
        lengths,
        longest,
        scaling,
        sliding_window,
        softcap,
        sinks,
    )


def int8_linear(x: Tensor, codes: Tensor, scales: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x times the transposed int8 weights, plus the bias. Activations are not quantised.

    Launches two kernels if the inputs are split, else one.

    Args:
        x: (num_rows, in_features), contiguous.
        codes: (out_features, in_features) int8, contiguous, such as bitsandbytes' integers.
        scales: (out_features,) float32: weight = codes * scales[:, None]. For bitsandbytes' codes, they are its row
            maxima divided by 127.
        bias: (out_features,), or None.

    Returns:
        (num_rows, out_features) in x's dtype.
    """
    return _call("int8_linear", x, codes, scales, bias)


def _call(name: str, *arguments: Any) -> Tensor:
    result: Tensor = _OPERATORS[name](*arguments)
    return result


def _implementation(name: str, can_run: Callable[..., bool]) -> Callable[..., Tensor]:
    """Return the function behind an operator: the Triton kernel's launcher if `can_run`, else the torch version."""
    plain: Callable[..., Tensor] = getattr(reference, name)

    def run(*arguments: Any) -> Tensor:
        if not _has_kernel(name, arguments) or not can_run():
            return plain(*arguments)
        # Imported here, because the launchers import Triton.
        launchers = importlib.import_module("inference_server.gpu.kernels.launchers")
        launcher: Callable[..., Tensor] = getattr(launchers, name)
        return launcher(*arguments)

    return run


def _has_kernel(name: str, arguments: tuple[Any, ...]) -> bool:
    """Return True if the Triton kernel of this operator supports these arguments."""
    first: Tensor = arguments[0]
    if first.is_cuda and first.dtype not in (torch.float16, torch.bfloat16):
        return False
    if name == "int8_linear":
        return first.shape[0] <= MAX_INT8_ROWS
    if name in ("paged_decode_attention", "paged_prefill_attention"):
        keys, values = arguments[1:3]
        width = first.shape[-1]
        return keys.shape == values.shape and keys.dtype is first.dtype and width <= MAX_HEAD_DIM and width % 8 == 0
    return True


_LIBRARY: Any = torch.library.Library("tailrace", "DEF")  # type: ignore[no-untyped-call]
for _name, _schema in _SCHEMAS.items():
    _LIBRARY.define(_name + _schema)
    _LIBRARY.impl(_name, _implementation(_name, has_triton), "CUDA")
    _LIBRARY.impl(_name, _implementation(_name, interprets), "CPU")

_OPERATORS: dict[str, Any] = {name: getattr(torch.ops.tailrace, name).default for name in _SCHEMAS}
