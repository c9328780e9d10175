"""Random paged caches, and the largest difference of an attention kernel from the torch version in float32."""

from typing import NamedTuple

import torch
from torch import Tensor

from inference_server.gpu import reference
from inference_server.gpu.kernels.decode_attention import paged_decode_attention
from inference_server.gpu.kernels.prefill_attention import paged_prefill_attention

BLOCK_SIZE = 32


class Heads(NamedTuple):
    """The sizes of a model's attention."""

    num_heads: int
    num_kv_heads: int
    head_dim: int


class Limits(NamedTuple):
    """The sliding window and the softcap of a model's attention."""

    sliding_window: int | None = None
    softcap: float | None = None


UNLIMITED = Limits()


class Cache(NamedTuple):
    """Paged keys and values, block tables and lengths of some sequences.

    Memory that no sequence uses is NaN. The table has two more columns than the longest sequence needs.
    """

    keys: Tensor
    values: Tensor
    table: Tensor
    lengths: Tensor


def random_cache(heads: Heads, lengths: list[int], dtype: torch.dtype, block_size: int = BLOCK_SIZE) -> Cache:
    """Return a cache for sequences of these lengths, with their blocks in random order."""
    generator = torch.Generator().manual_seed(1)
    counts = [-(-length // block_size) for length in lengths]
    blocks = (torch.randperm(sum(counts), generator=generator) + 1).split(counts)
    table = torch.zeros(len(lengths), max(counts) + 2, dtype=torch.int32)
    keys, values = (
        torch.full((sum(counts) + 1, block_size, heads.num_kv_heads, heads.head_dim), float("nan")) for _ in range(2)
    )
    for index, (length, count) in enumerate(zip(lengths, counts, strict=True)):
        table[index, :count] = blocks[index]
        for cached in (keys, values):
            filled = torch.full((count * block_size, *cached.shape[2:]), float("nan"))
            filled[:length] = torch.randn(length, *cached.shape[2:], generator=generator)
            cached[blocks[index]] = filled.unflatten(0, (count, block_size))
    return Cache(keys.to(dtype), values.to(dtype), table, torch.tensor(lengths, dtype=torch.int32))


def random_queries(num_tokens: int, heads: Heads, dtype: torch.dtype) -> Tensor:
    """Return queries (num_tokens, num_heads, head_dim)."""
    generator = torch.Generator().manual_seed(2)
    return torch.randn(num_tokens, heads.num_heads, heads.head_dim, generator=generator).to(dtype)


def random_sinks(heads: Heads) -> Tensor:
    """Return sinks (num_heads,), some far above and some far below every score."""
    return torch.randn(heads.num_heads, generator=torch.Generator().manual_seed(3)) * 4


def decode_error(
    heads: Heads,
    lengths: list[int],
    dtype: torch.dtype,
    limits: Limits = UNLIMITED,
    splits: int = 1,
    *,
    has_sinks: bool = False,
) -> float:
    """Return the largest difference of paged_decode_attention, over all sequences with keys."""
    cache = random_cache(heads, lengths, dtype)
    query = random_queries(len(lengths), heads, dtype)
    scaling = heads.head_dim**-0.5
    sinks = random_sinks(heads) if has_sinks else None
    got = paged_decode_attention(query, *cache, scaling, *limits, splits, sinks).float()
    assert got.isfinite().all()
    wide = _float32(cache)
    expected = reference.paged_decode_attention(query.float(), *wide, scaling, *limits, splits, sinks)
    return _largest(got, expected, cache.lengths > 0)


def prefill_error(
    heads: Heads,
    segments: list[tuple[int, int]],
    dtype: torch.dtype,
    limits: Limits = UNLIMITED,
    *,
    has_sinks: bool = False,
) -> float:
    """Return the largest difference of paged_prefill_attention. Each segment is a number of new tokens and a length."""
    tokens = [count for count, _ in segments]
    cache = random_cache(heads, [length for _, length in segments], dtype)
    query = random_queries(sum(tokens), heads, dtype)
    starts = torch.tensor([0, *tokens]).cumsum(0).int()
    sinks = random_sinks(heads) if has_sinks else None
    options = (starts, cache.lengths, max(tokens), heads.head_dim**-0.5, *limits, sinks)
    got = paged_prefill_attention(query, *cache[:3], *options).float()
    expected = reference.paged_prefill_attention(query.float(), *_float32(cache)[:3], *options)
    return _largest(got, expected)


def _float32(cache: Cache) -> Cache:
    return cache._replace(keys=cache.keys.float().nan_to_num(), values=cache.values.float().nan_to_num())


def _largest(got: Tensor, expected: Tensor, rows: Tensor | slice = slice(None)) -> float:
    return float((got - expected)[rows].abs().max())
