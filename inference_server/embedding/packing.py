"""Computes attention over several texts in one row of tokens. It is registered with transformers as `packed`.

The texts of a batch are concatenated without padding, ordered by length. One call computes the attention of all texts
of equal length, and no token attends to another text. Does not depend on a tokenizer.
"""

from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from inference_server.errors import UnsupportedModel

NAME = "packed"

# Keyword arguments of transformers models that this attention accepts. Only `is_causal` has an effect.
_IGNORED = {"dropout", "position_ids", "position_embeddings", "use_cache", "output_attentions", "is_causal"}


@dataclass(frozen=True, slots=True)
class Run:
    """Neighbouring texts of equal length: `count` texts of `length` tokens, from token `start` of the row."""

    start: int
    count: int
    length: int


def _nothing() -> None:
    """Do nothing: the default of `Packing.on_layer`."""


@dataclass(frozen=True, slots=True)
class Packing:
    """The texts of one row of tokens.

    Attributes:
        lengths: Number of tokens of each text, in ascending order.
        runs: The same texts, grouped by length.
        on_layer: Called after the attention of each layer.
    """

    lengths: tuple[int, ...]
    runs: tuple[Run, ...]
    on_layer: Callable[[], None] = field(default=_nothing, compare=False)

    @classmethod
    def of(cls, lengths: Items[int], on_layer: Callable[[], None] = _nothing) -> "Packing":
        """Return the packing of texts with these lengths in tokens, which are in ascending order and above 0."""
        runs, start = [], 0
        for length, group in groupby(lengths):
            count = len(list(group))
            runs.append(Run(start, count, length))
            start += count * length
        return cls(tuple(lengths), tuple(runs), on_layer)

    def positions(self, first: int) -> Tensor:
        """Return the positions of all tokens: int64, of shape (num_tokens,). Each text begins at position `first`."""
        return torch.cat([torch.arange(first, first + run.length).repeat(run.count) for run in self.runs])


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packing: Packing,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend within each text. The signature is that of transformers' attention functions.

    Args:
        module: The attention module. Its `is_causal` is False if a token attends to later tokens too.
        query: Queries after position embedding, of shape (1, num_heads, num_tokens, head_dim).
        key: Keys after position embedding, of shape (1, num_kv_heads, num_tokens, head_dim).
        value: Values, of shape (1, num_kv_heads, num_tokens, value_dim).
        attention_mask: Must be None: masks are not supported.
        packing: The texts of the row.
        scaling: Factor that multiplies the scores; None for head_dim ** -0.5.
        kwargs: Further arguments of the model. `is_causal` replaces the module's own. Others in _IGNORED are ignored.

    Returns:
        The output, of shape (1, num_tokens, num_heads, value_dim), and None in place of the attention weights.

    Raises:
        UnsupportedModel: The model passes an argument that this attention would have to ignore (sliding windows,
            position biases, …).
    """
    unknown = sorted(name for name, given in kwargs.items() if given is not None and name not in _IGNORED)
    if unknown or attention_mask is not None:
        raise UnsupportedModel(f"its attention needs {', '.join(unknown) or 'a mask of its own'}")
    is_causal = bool(kwargs["is_causal"] if kwargs.get("is_causal") is not None else module.is_causal)
    output = attend_rows(query[0], key[0], value[0], packing, is_causal=is_causal, scaling=scaling)
    return output.unsqueeze(0), None


def attend_rows(
    query: Tensor, key: Tensor, value: Tensor, packing: Packing, *, is_causal: bool, scaling: float | None = None
) -> Tensor:
    """Attend within each text.

    Args:
        query: Queries after position embedding, of shape (num_heads, num_tokens, head_dim).
        key: Keys after position embedding, of shape (num_kv_heads, num_tokens, head_dim).
        value: Values, of shape (num_kv_heads, num_tokens, value_dim).
        packing: The texts of the row.
        is_causal: False if a token attends to later tokens too.
        scaling: Factor that multiplies the scores; None for head_dim ** -0.5.

    Returns:
        The output, of shape (num_tokens, num_heads, value_dim).
    """
    is_grouped = query.shape[0] != key.shape[0]
    outputs = []
    for run in packing.runs:
        queries, keys, values = (_texts(tensor, run) for tensor in (query, key, value))
        output = F.scaled_dot_product_attention(
            queries, keys, values, is_causal=is_causal, scale=scaling, enable_gqa=is_grouped
        )  # (count, num_heads, length, value_dim)
        outputs.append(output.transpose(1, 2).flatten(0, 1))
    packing.on_layer()
    return torch.cat(outputs)


def _texts(tensor: Tensor, run: Run) -> Tensor:
    """Return a view of a run's texts, of shape (count, heads, length, head_dim).

    `tensor` has the shape (heads, num_tokens, head_dim).
    """
    end = run.start + run.count * run.length
    part = tensor[:, run.start : end]
    return part.view(part.shape[0], run.count, run.length, part.shape[2]).transpose(0, 1)


def register() -> None:
    """Register `attend` with transformers under NAME. Imports transformers, which takes more than a second."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attend)
