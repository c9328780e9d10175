"""Represents the tokens of a forward pass, and computes their block tables and cache rows."""

from collections.abc import Sequence as Items
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from inference_server.attention.kv_cache import KVCache


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive prompt tokens of a sequence: `length` tokens from position `start` on, cached in blocks `block_ids`.

    `adapter`: the number of the sequence's LoRA adapter, from 1; 0 for none.
    """

    block_ids: Items[int]
    start: int
    length: int
    adapter: int = 0

    @property
    def end(self) -> int:
        """Return the position after the last token."""
        return self.start + self.length


@dataclass(frozen=True, slots=True)
class DecodeTokens:
    """Tokens to decode: the newest token of each of several sequences, possibly followed by draft tokens."""

    token_ids: list[int]
    positions: list[int]
    block_ids: Items[Items[int]]
    adapters: Items[int] = ()  # the LoRA adapter of each token, from 1, 0 for none; empty if the model has no adapters


@dataclass(frozen=True, slots=True)
class PromptTokens:
    """The tokens of several prompt segments, concatenated."""

    token_ids: list[int]
    positions: list[int]
    segments: list[Segment]

    @property
    def adapters(self) -> list[int]:
        """Return the number of each token's LoRA adapter, from 1; 0 for none."""
        return [segment.adapter for segment in self.segments for _ in range(segment.length)]


def decode_inputs(
    block_size: int, block_ids: Items[Items[int]], positions: Items[int], num_rows: int, num_blocks: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Return table, lengths and rows of a DecodeBatch, on the CPU.

    Padding rows are zeros: length 0, cache row 0 of the scratch block.

    Args:
        block_size: Tokens of a block.
        block_ids: The blocks of each token's sequence.
        positions: The position of each token.
        num_rows: The number of rows after padding.
        num_blocks: The minimum width of the block tables.
    """
    num_blocks = max(num_blocks, max(positions) // block_size + 1)
    table = np.zeros((num_rows, num_blocks), dtype=np.int32)
    lengths = np.zeros(num_rows, dtype=np.int32)
    rows = np.zeros(num_rows, dtype=np.int64)
    last_blocks = []
    for index, (blocks, position) in enumerate(zip(block_ids, positions, strict=True)):
        used = blocks[: position // block_size + 1]
        table[index, : len(used)] = used
        last_blocks.append(used[-1])
    count, places = len(positions), np.asarray(positions)
    lengths[:count] = places + 1
    rows[:count] = np.asarray(last_blocks) * block_size + places % block_size
    return torch.from_numpy(table), torch.from_numpy(lengths), torch.from_numpy(rows)


def prefill_inputs(cache: KVCache, segments: Items[Segment]) -> tuple[list[Tensor], Tensor]:
    """Return the segments' block tables, each (num_blocks,) int32, and their tokens' cache rows, (num_tokens,) int64."""
    size, device = cache.block_size, cache.device
    tables = [torch.tensor(s.block_ids[: -(-s.end // size)], dtype=torch.int32, device=device) for s in segments]
    rows = []
    for segment, table in zip(segments, tables, strict=True):
        positions = torch.arange(segment.start, segment.end, device=device)
        rows.append(table[positions // size].long() * size + positions % size)
    return tables, torch.cat(rows)
