"""Operations of a forward pass on a CPU, each as one compiled kernel instead of several torch operations.

Inputs and results are float32 or bfloat16; arithmetic is float32. If no kernel supports an operation's tensors, its
torch version in reference.py computes it: another device or dtype, unsupported widths or strides, or llvmlite missing.
"""

from collections.abc import Sequence as Items

import torch
from torch import Tensor

from inference_server.kernels import reference
from inference_server.kernels.jit import arguments
from inference_server.kernels.jit.arguments import HeadNorms
from inference_server.kernels.jit.kernel import ENOUGH_NS, Kernel, kernel

_IS_BF16 = {torch.float32: False, torch.bfloat16: True}
_MAX_LANES = 16  # widths must be multiples of 16, so that they are whole vectors on every CPU
_MAX_PREFILL_HEAD_DIM = 256
_STACK_FLOATS = 64_000  # number of float32 values that always fit on a thread's stack


def available() -> bool:
    """Return True if kernels can be compiled here. The first call loads or compiles one, which can take a second."""
    return kernel("silu_mul", False) is not None


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return the RMS norm of each row, rounded to x's dtype, times `weight`, as transformers' LlamaRMSNorm does.

    Args:
        x: (num_rows, width).
        weight: (width,), in x's dtype.
        eps: Added to the mean square.
    """
    dtype = x.dtype
    num_rows, width = x.shape
    function = _kernel("rms_norm", x.device, dtype)
    if (
        function is None
        or width % _MAX_LANES
        or weight.dtype is not dtype
        or not (x.is_contiguous() and weight.is_contiguous())
    ):
        return reference.rms_norm(x, weight, eps)
    out = torch.empty_like(x)
    function.run(arguments.rms_norm(x, weight, out, eps), num_rows, num_rows * width // 4)
    return out


def silu_mul(gate_up: Tensor) -> Tensor:
    """Return silu(gate) * up, (num_rows, width), where gate_up (num_rows, 2 * width) is gate, then up."""
    num_rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    function = _kernel("silu_mul", gate_up.device, gate_up.dtype)
    if function is None or width % _MAX_LANES or not gate_up.is_contiguous():
        return reference.silu_mul(gate_up)
    out = torch.empty(num_rows, width, dtype=gate_up.dtype)
    function.run(arguments.silu_mul(gate_up, out), num_rows, num_rows * width)
    return out


def rope_and_write(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    keys: Tensor,
    values: Tensor,
    rows: Tensor,
    num_heads: int,
    num_kv_heads: int,
    norms: HeadNorms | None = None,
) -> Tensor:
    """Rotate queries and keys by their positions, and write keys and values into the KV cache.

    Args:
        qkv: (num_tokens, (num_heads + 2 * num_kv_heads) * head_dim). With `norms`, queries and keys may be overwritten.
        cos: (num_tokens, head_dim), float32 or qkv's dtype, each angle in both halves.
        sin: The same for the sines.
        keys: The layer's cached keys, (num_blocks, block_size, num_kv_heads, head_dim), float32 or bfloat16.
        values: The layer's cached values, in the same shape and dtype.
        rows: (num_tokens,) int64, the cache row of each token: block * block_size + offset.
        num_heads: Number of query heads.
        num_kv_heads: Number of key heads, and of value heads.
        norms: RMS norms applied to query and key heads before the rotation; None: no norms.

    Returns:
        The rotated queries, (num_tokens, num_heads, head_dim).
    """
    dtype = qkv.dtype
    width = keys.shape[-1]
    name = "rope_and_write" if norms is None else "norm_rope_and_write"
    if not (
        keys.dtype is values.dtype
        and (norms is None or _norms_fit(norms, dtype))
        and (cos.dtype is dtype or cos.dtype is torch.float32)
        and sin.dtype is cos.dtype
        and rows.dtype is torch.int64
        and values.shape[-1] == cos.shape[-1] == width
        and qkv.is_contiguous()
        and cos.is_contiguous()
        and sin.is_contiguous()
        and rows.is_contiguous()
        and keys.is_contiguous()
        and values.is_contiguous()
        and (function := _kernel(name, qkv.device, dtype, cos.dtype, keys.dtype)) is not None
    ):
        return reference.rope_and_write(qkv, cos, sin, keys, values, rows, num_heads, num_kv_heads, norms)
    num_rows = qkv.shape[0]
    query = torch.empty(num_rows, num_heads, width, dtype=dtype)
    block = arguments.rope_and_write(qkv, cos, sin, keys, values, rows, query, norms)
    function.run(block, num_rows, num_rows * qkv.shape[1] // 2)
    return query


def paged_decode_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    block_table: Tensor,
    lengths: Tensor,
    scaling: float,
    sliding_window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Attend with each sequence's newest token, at position length - 1, over the sequence's keys so far.

    A sequence's result is bit-identical for every batch composition and any number of threads. A sequence with draft
    tokens counts as several sequences, which have the same block table and different lengths.

    Args:
        query: (num_seqs, num_heads, head_dim).
        keys: (num_blocks, block_size, num_kv_heads, head_dim), float32 or bfloat16.
        values: (num_blocks, block_size, num_kv_heads, value_dim), in the keys' dtype.
        block_table: (num_seqs, max_blocks) int32; its rows need not be adjacent in memory.
        lengths: (num_seqs,) int32. The result of a row of length 0 is zeros. Nothing beyond a length is read.
        scaling: The factor on the scores.
        sliding_window: The number of newest keys that are attended to; None for all.
        softcap: The limit c of c * tanh(score / c); None for no limit.
        sinks: (num_heads,) float32: for each head, a score that is part of the softmax but has no value; None: no
            sinks.

    Returns:
        (num_seqs, num_heads, value_dim) in the queries' dtype.
    """
    num_seqs, num_heads, width = query.shape
    _, block_size, num_kv_heads, value_width = values.shape
    group = num_heads // num_kv_heads
    function = _kernel("decode_attention", query.device, query.dtype, keys.dtype)
    if (
        function is None
        or width % _MAX_LANES
        or value_width % _MAX_LANES
        or group * (width + value_width + 64) + width * _MAX_LANES > _STACK_FLOATS
        or not _attention_tensors_fit(query, keys, values, block_table, lengths)
        or not _are_sinks(sinks)
    ):
        return reference.paged_decode_attention(
            query, keys, values, block_table, lengths, scaling, sliding_window, softcap, sinks
        )
    out = torch.empty(num_seqs, num_heads, value_width, dtype=query.dtype)
    block = arguments.attention(query, keys, values, block_table, lengths, out, scaling, sliding_window, softcap, sinks)
    function.run(block, num_seqs * num_kv_heads, ENOUGH_NS)
    return out


def prefill_attention_kernel(query_dtype: torch.dtype, keys: Tensor) -> Kernel | None:
    """Return the prefill attention kernel, or None if this CPU or these tensors have none.

    Args:
        query_dtype: float32 or bfloat16.
        keys: The layer's cached keys, (num_blocks, block_size, num_kv_heads, head_dim). The kernel requires bfloat16, a
            `block_size` that is a multiple of 32, and a `head_dim` that is a multiple of 32 and at most 256.
    """
    _, block_size, _, width = keys.shape
    if keys.dtype is not torch.bfloat16 or width % 32 or width > _MAX_PREFILL_HEAD_DIM or block_size % 32:
        return None
    return _kernel("prefill_attention", keys.device, query_dtype)


def paged_prefill_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    blocks: Tensor,
    start: int,
    scaling: float,
    sinks: Tensor | None = None,
) -> Tensor | None:
    """Attend causally with consecutive tokens of one sequence over the sequence's keys so far.

    A token's result is bit-identical for any division of the prompt into chunks.

    Args:
        query: (num_tokens, num_heads, head_dim).
        keys: (num_blocks, block_size, num_kv_heads, head_dim).
        values: The same shape and dtype as `keys`.
        blocks: The sequence's block table, (num_blocks,) int32.
        start: The position of the first token.
        scaling: The factor on the scores.
        sinks: See paged_decode_attention.

    Returns:
        (num_tokens, num_heads, head_dim), or None if `prefill_attention_kernel` has no kernel for these tensors.
    """
    num_rows, _, width = query.shape
    function = prefill_attention_kernel(query.dtype, keys) if query.is_cpu else None
    if (
        function is None
        or keys.dtype is not values.dtype
        or keys.shape != values.shape
        or blocks.dtype is not torch.int32
        or not _are_sinks(sinks)
        or not all(tensor.is_cpu and tensor.is_contiguous() for tensor in (query, keys, values, blocks))
    ):
        return None
    out = torch.empty_like(query)
    segments = PrefillSegments([start], [num_rows], [blocks])
    segments.allocate_workspace(keys.shape[2], width)
    block = arguments.prefill_attention(query, keys, values, segments.table, out, scaling, sinks)
    function.run(block, num_rows, ENOUGH_NS)
    return out


class PrefillSegments:
    """The table of segments that a prefill attention kernel reads. A segment is consecutive tokens of one sequence."""

    def __init__(self, starts: Items[int], lengths: Items[int], tables: Items[Tensor], first_row: int = 0) -> None:
        """Build the table.

        Args:
            starts: The position of each segment's first token.
            lengths: The number of tokens of each segment.
            tables: The block table of each segment's sequence, (num_blocks,) int32.
            first_row: The row of the queries and the result where the first segment begins. Rows before it stay unchanged.
        """
        words, self._bytes = arguments.prefill_segments(starts, lengths, tables, first_row)
        self.table = torch.tensor(words)  # int64
        self._tables = tables
        self._workspace: Tensor | None = None

    def allocate_workspace(self, num_kv_heads: int, head_dim: int) -> None:
        """Allocate the memory for the kernel's copy of the values, and enter its address into the table."""
        memory = torch.empty(self._bytes * num_kv_heads * head_dim + 64, dtype=torch.int8)
        self._workspace = memory[-memory.data_ptr() % 64 :]
        self.table[0] = self._workspace.data_ptr()


def _norms_fit(norms: HeadNorms, dtype: torch.dtype) -> bool:
    """Return True if the kernel can read these norms: weights of whole vectors, in the activations' dtype."""
    return all(
        weight.dtype is dtype and weight.is_contiguous() and weight.numel() % _MAX_LANES == 0
        for weight in (norms.query, norms.key)
    )


def _attention_tensors_fit(query: Tensor, keys: Tensor, values: Tensor, block_table: Tensor, lengths: Tensor) -> bool:
    return (
        keys.dtype is values.dtype
        and block_table.dtype is lengths.dtype is torch.int32
        and block_table.stride(1) == 1
        and query.is_contiguous()
        and keys.is_contiguous()
        and values.is_contiguous()
        and lengths.is_contiguous()
    )


def _are_sinks(sinks: Tensor | None) -> bool:
    return sinks is None or (sinks.is_cpu and sinks.dtype is torch.float32 and sinks.is_contiguous())


def _kernel(name: str, device: torch.device, *dtypes: torch.dtype) -> Kernel | None:
    """Return a kernel for tensors of these dtypes, or None if there is none. Compiles nothing for a GPU."""
    is_bf16 = [_IS_BF16.get(dtype) for dtype in dtypes]
    return None if device.type != "cpu" or None in is_bf16 else kernel(name, *map(bool, is_bf16))
