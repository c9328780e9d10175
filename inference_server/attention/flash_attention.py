"""Calls torch's flash attention over paged keys and values on GPUs (torch.nn.attention.varlen).

Its arguments change between releases. If the installed torch has other arguments, `supports` returns False and
torch_attention.py is used.
"""

import functools
import inspect
from typing import Any

import torch
from torch import Tensor

from inference_server.attention.torch_attention import AttentionSpec

_PARAMETERS = {"scale", "window_size", "enable_gqa", "seqused_k", "block_table"}


@functools.cache
def _function() -> Any | None:
    """Return varlen_attn, or None if this torch has none with the parameters used here."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn if set(inspect.signature(varlen_attn).parameters) >= _PARAMETERS else None


def supports(query: Tensor, keys: Tensor, values: Tensor, spec: AttentionSpec) -> bool:
    """Return True for 16-bit tensors on a GPU with equally wide keys and values and without softcap."""
    return (
        query.device.type == "cuda"
        and query.dtype in (torch.float16, torch.bfloat16)
        and keys.shape == values.shape
        and spec.softcap is None
        and _function() is not None
    )


def attention(
    query: Tensor, keys: Tensor, values: Tensor, table: Tensor, lengths: Tensor, spec: AttentionSpec
) -> Tensor:
    """Attend with one query for each of n sequences over paged keys and values.

    Only the GPU reads the values of `lengths`, so a CUDA graph can record the call.

    Args:
        query: (n, num_heads, head_dim).
        keys: (num_blocks, block_size, num_kv_heads, head_dim), and `values` the same.
        values: See `keys`.
        table: (n, max_blocks) int32, the block tables.
        lengths: (n,) int32, the number of keys of each sequence, at least 1.
        spec: The attention's constants.

    Returns:
        (n, num_heads, head_dim).
    """
    function = _function()
    assert function is not None
    starts = torch.arange(query.shape[0] + 1, dtype=torch.int32, device=query.device)
    window = -1 if spec.sliding_window is None else spec.sliding_window - 1
    output: Tensor = function(
        query,
        keys,
        values,
        starts,
        None,
        1,
        table.shape[1] * keys.shape[1],
        scale=spec.scaling,
        window_size=(window, 0),
        enable_gqa=query.shape[1] != keys.shape[2],
        seqused_k=lengths,
        block_table=table,
    )
    return output
