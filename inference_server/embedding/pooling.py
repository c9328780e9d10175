"""Combines the vectors of a text's tokens into one vector: the mean, the first token's or the last token's."""

from collections.abc import Sequence as Items

import torch
from torch import Tensor

from inference_server.embedding.pooling_names import Pooling


def pooled(hidden: Tensor, lengths: Items[int], poolings: Items[Pooling]) -> Tensor:
    """Return one vector for each text: a float32 tensor of shape (num_texts, width).

    Args:
        hidden: Vectors of the tokens of all texts, one text after the other, of shape (num_tokens, width).
        lengths: Number of tokens of each text.
        poolings: Pooling of each text.
    """
    ends = torch.tensor(lengths, device=hidden.device).cumsum(0)
    kinds = set(poolings)
    if len(kinds) == 1:
        return _pooled(hidden, lengths, ends, poolings[0])
    result = torch.empty(len(lengths), hidden.shape[1], device=hidden.device)
    for kind in kinds:
        places = torch.tensor(
            [place for place, pooling in enumerate(poolings) if pooling == kind], device=hidden.device
        )
        result[places] = _pooled(hidden, lengths, ends, kind)[places]
    return result


def _pooled(hidden: Tensor, lengths: Items[int], ends: Tensor, pooling: Pooling) -> Tensor:
    if pooling == "last":
        return hidden[ends - 1].float()
    counts = torch.tensor(lengths, device=hidden.device)
    if pooling == "cls":
        return hidden[ends - counts].float()
    texts = torch.repeat_interleave(torch.arange(len(lengths), device=hidden.device), counts)
    sums = torch.zeros(len(lengths), hidden.shape[1], device=hidden.device).index_add_(0, texts, hidden.float())
    return sums / counts.unsqueeze(1)
