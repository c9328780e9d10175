"""torch's own flash attention over paged keys and values, for GPUs: torch.nn.attention.varlen.

Its arguments changed from release to release; where this torch's function is another one, `takes` says no and attention
goes the way of scores.py.
"""

import functools
import inspect
from typing import Any

import torch
from torch import Tensor

from inference_server.attention.torch_attention import Form

_WANTED = {"scale", "window_size", "enable_gqa", "seqused_k", "block_table"}


@functools.cache
def _function() -> Any | None:
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn if set(inspect.signature(varlen_attn).parameters) >= _WANTED else None


def takes(query: Tensor, keys: Tensor, values: Tensor, form: Form) -> bool:
    """Whether flash attention takes this: 16 bits, on a GPU, one width for keys and values, no soft limit."""
    return (
        query.device.type == "cuda"
        and query.dtype in (torch.float16, torch.bfloat16)
        and keys.shape == values.shape
        and form.softcap is None
        and _function() is not None
    )


def attention(query: Tensor, keys: Tensor, values: Tensor, table: Tensor, lengths: Tensor, form: Form) -> Tensor:
    """One query (n, num_heads, head_dim) for each of n sequences over paged keys and values
    (num_blocks, block_size, num_kv_heads, head_dim).

    table (n, max_blocks) int32, lengths (n,) int32. Nothing depends on the lengths' values but the device's own work, so a
    CUDA graph may hold it. Returns (n, num_heads, head_dim).
    """
    function = _function()
    assert function is not None
    starts = torch.arange(query.shape[0] + 1, dtype=torch.int32, device=query.device)
    window = -1 if form.sliding_window is None else form.sliding_window - 1
    output: Tensor = function(
        query,
        keys,
        values,
        starts,
        None,
        1,
        table.shape[1] * keys.shape[1],
        scale=form.scaling,
        window_size=(window, 0),
        enable_gqa=query.shape[1] != keys.shape[2],
        seqused_k=lengths,
        block_table=table,
    )
    return output
