"""Copies the inputs of forward passes to a GPU without waiting for it: tokens, positions, cache rows and block tables.

The inputs of decode passes have one buffer at a fixed address, so that CUDA graphs can read it. Each step copies only
the buffer's first rows, with one copy from pinned memory.
"""

from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from inference_server.attention.step_inputs import DecodeTokens, Segment

# Columns of the buffer. The block table fills all columns from _TABLE on.
_TOKEN, _POSITION, _ROW, _LENGTH, _ADAPTER, _TABLE = range(6)


@dataclass(frozen=True, slots=True)
class DecodeRows:
    """The n tokens of a decode pass, on the device: newest tokens and draft tokens. Rows of length 0 are padding."""

    token_ids: Tensor  # (n,) int64
    positions: Tensor  # (n,) int32
    rows: Tensor  # (n,) int32, the tokens' rows of the KV cache
    lengths: Tensor  # (n,) int32, the lengths of the tokens' sequences, up to and including the token
    table: Tensor  # (n, max_blocks) int32, the block tables
    adapters: Tensor  # (n,) int32, the LoRA adapter of each token's sequence, from 1; 0 for none


@dataclass(frozen=True, slots=True)
class PromptRows:
    """The tokens of n prompt segments, on the device. All tensors are int32."""

    token_ids: Tensor  # (num_tokens,), or (0,) if the caller passed no token ids
    positions: Tensor  # (num_tokens,)
    rows: Tensor  # (num_tokens,), the tokens' rows of the KV cache
    wanted: Tensor  # (num_wanted,), the indices of the tokens whose logits are needed
    starts: Tensor  # (n + 1,), the index of each segment's first token, then num_tokens
    lengths: Tensor  # (n,), the number of keys of each sequence, including the new tokens
    table: Tensor  # (n, blocks of the longest sequence), the block tables
    longest: int  # number of tokens of the longest segment


def upload(values: Items[int] | npt.NDArray[Any], device: torch.device) -> Tensor:
    """Return one-dimensional integers as an int32 tensor on `device`. The host does not wait for the copy.

    On a CPU, the tensor shares the memory of an int32 array.
    """
    host = torch.from_numpy(np.asarray(values, dtype=np.int32))
    if device.type != "cuda":
        return host
    # torch keeps the pinned memory until the copy has finished.
    return torch.empty(host.shape, dtype=host.dtype, device=device).copy_(host.pin_memory(), non_blocking=True)


def upload_prompts(
    segments: Items[Segment],
    *,
    block_size: int,
    device: torch.device,
    token_ids: Items[int] = (),
    wanted: Items[int] = (),
) -> PromptRows:
    """Copy prompt segments to the device, with one copy for all tensors.

    Args:
        segments: The segments, at least one.
        block_size: Tokens of a block.
        device: The device.
        token_ids: The tokens of all segments, concatenated; empty if the caller does not need PromptRows.token_ids.
        wanted: The indices of the tokens whose logits are needed.
    """
    lengths = np.array([segment.length for segment in segments])
    ends = np.array([segment.end for segment in segments])
    table = np.zeros((len(segments), -(-int(ends.max()) // block_size)), dtype=np.int32)
    for row, segment in zip(table, segments, strict=True):
        used = segment.block_ids[: -(-segment.end // block_size)]
        row[: len(used)] = used
    positions = np.concatenate([np.arange(segment.start, segment.end) for segment in segments])
    owners = np.repeat(np.arange(len(segments)), lengths)
    rows = table[owners, positions // block_size] * block_size + positions % block_size
    starts = np.concatenate([[0], np.cumsum(lengths)])
    given = [np.asarray(each, dtype=np.int32) for each in (token_ids, wanted)]
    parts = [given[0], positions, rows, given[1], starts, ends, table.ravel()]
    together = torch.split(upload(np.concatenate(parts), device), [len(part) for part in parts])
    ids, places, cache_rows, indices, offsets, key_counts, blocks = together
    return PromptRows(
        ids, places, cache_rows, indices, offsets, key_counts, blocks.view(table.shape), int(lengths.max())
    )


class DecodeInputs:
    """The buffer that decode passes read, (max_rows, 5 + max_blocks) int32 at a fixed address on the device.

    Each row has a token id, its position, its row of the KV cache, the sequence's length and adapter, and the block table. A
    negative token id -(k + 1) refers to row k of `sampled`, which the device reads during the pass. So the host can start
    a pass before it has read the sampled tokens.

    Attributes:
        max_rows: The largest number of rows.
        sampled: (max_rows,) int64 on the device, the tokens that were sampled last.
    """

    def __init__(self, sampled: Tensor, *, max_blocks: int, block_size: int) -> None:
        """Create a buffer with as many rows as `sampled`. `max_blocks`: number of blocks of the longest sequence."""
        self.sampled = sampled
        self.max_rows = len(sampled)
        shape = (self.max_rows, _TABLE + max_blocks)
        self._buffer = torch.zeros(shape, dtype=torch.int32, device=sampled.device)
        # Two copies on the host, so that it can fill one while the device still reads the other.
        self._staging = [_Staging(shape, sampled.device, block_size) for _ in range(2)]

    def write(self, tokens: DecodeTokens, num_rows: int) -> None:
        """Copy the tokens' inputs to the device, padded to `num_rows`. The host does not wait for the copy.

        Raises:
            ValueError: There are more tokens or rows than max_rows.
        """
        if max(len(tokens.token_ids), num_rows) > self.max_rows:
            raise ValueError(f"a decode pass has at most {self.max_rows} rows, not {len(tokens.token_ids)}")
        self._staging.reverse()
        self._staging[0].fill(tokens, num_rows)
        self._staging[0].copy_to(self._buffer, num_rows)

    def rows(self, num_rows: int) -> DecodeRows:
        """Return the first rows of the buffer, with the sampled tokens in place of negative ids."""
        part = self._buffer[:num_rows]
        ids = part[:, _TOKEN]
        # The bitwise complement of an id is -(id + 1). Its value has no effect where the id is not negative.
        sampled = self.sampled.index_select(0, torch.bitwise_not(ids).clamp(min=0))
        return DecodeRows(
            token_ids=torch.where(ids < 0, sampled, ids),
            positions=part[:, _POSITION],
            rows=part[:, _ROW],
            lengths=part[:, _LENGTH],
            table=part[:, _TABLE:],
            adapters=part[:, _ADAPTER],
        )


class _Staging:
    """Pinned memory of the host with the same columns as the buffer on the device."""

    def __init__(self, shape: tuple[int, int], device: torch.device, block_size: int) -> None:
        self._host = torch.zeros(shape, dtype=torch.int32)
        if device.type == "cuda":
            self._host = self._host.pin_memory()
        self._cells = self._host.numpy()
        self._tables: list[Items[int]] = [()] * shape[0]  # the block table that each row contains
        self._block_size = block_size
        self._copied: torch.cuda.Event | None = None  # occurs when the device has copied the contents

    def fill(self, tokens: DecodeTokens, num_rows: int) -> None:
        """Write the tokens' rows, and padding up to `num_rows`. Waits until the last `copy_to` has finished."""
        if self._copied is not None:
            self._copied.synchronize()
        cells, size, count = self._cells, self._block_size, len(tokens.token_ids)
        last_blocks = []
        for index, (blocks, position) in enumerate(zip(tokens.block_ids, tokens.positions, strict=True)):
            used = blocks[: position // size + 1]
            last_blocks.append(used[-1])
            if self._tables[index] != used:  # comparing two lists is much faster than writing the row
                cells[index, _TABLE : _TABLE + len(used)] = used
                self._tables[index] = used
        positions = np.asarray(tokens.positions)
        cells[:count, _TOKEN] = tokens.token_ids
        cells[:count, _POSITION] = positions
        cells[:count, _ROW] = np.asarray(last_blocks) * size + positions % size
        cells[:count, _LENGTH] = positions + 1
        cells[:count, _ADAPTER] = tokens.adapters or 0
        cells[count:num_rows, :_TABLE] = 0

    def copy_to(self, buffer: Tensor, num_rows: int) -> None:
        """Copy the first rows to the device. The host does not wait."""
        buffer[:num_rows].copy_(self._host[:num_rows], non_blocking=True)
        if buffer.device.type == "cuda":
            if self._copied is None:
                self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record()
