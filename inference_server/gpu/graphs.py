"""Runs decode passes on a GPU as CUDA graphs: recorded once for each batch size, then replayed with other tokens.

Without graphs, launching the kernels of a small model takes longer than running them. A recording has fixed tensors: each
pass writes its tokens into them, and unused rows are padding.
"""

import logging
from collections.abc import Callable
from collections.abc import Sequence as Items

import torch
from torch import Tensor

from inference_server.attention.kv_cache import KVCache
from inference_server.attention.paged import DecodeBatch, decode_inputs
from inference_server.errors import first_line

logger = logging.getLogger(__name__)

# (token_ids (n, 1), positions (n, 1), batch) -> logits (n, vocab_size) float32
Forward = Callable[[Tensor, Tensor, DecodeBatch], Tensor]


class _Recording:
    """The CUDA graph of one batch size, with its fixed inputs and the logits that every replay overwrites."""

    def __init__(self, forward: Forward, cache: KVCache, num_rows: int, num_blocks: int) -> None:
        device = cache.device
        self._num_rows, self._num_blocks, self._block_size = num_rows, num_blocks, cache.block_size
        self._token_ids = torch.zeros((num_rows, 1), dtype=torch.int64, device=device)
        self._positions = torch.zeros((num_rows, 1), dtype=torch.int64, device=device)
        # During recording, every row reads one key of the scratch block.
        self._table = torch.zeros((num_rows, num_blocks), dtype=torch.int32, device=device)
        self._lengths = torch.ones(num_rows, dtype=torch.int32, device=device)
        self._rows = torch.zeros(num_rows, dtype=torch.int64, device=device)
        batch = DecodeBatch(cache, self._table, self._lengths, self._rows)
        side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):  # libraries choose kernels and allocate workspaces at their first call
            for _ in range(2):
                forward(self._token_ids, self._positions, batch)
        torch.cuda.current_stream(device).wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._logits = forward(self._token_ids, self._positions, batch)

    def replay(self, token_ids: Items[int], positions: Items[int], block_ids: Items[Items[int]]) -> Tensor:
        """Compute one token of each sequence. Returns logits (num_seqs, vocab_size) float32."""
        count = len(token_ids)
        table, lengths, rows = decode_inputs(self._block_size, block_ids, positions, self._num_rows, self._num_blocks)
        lengths[count:] = 1
        padding = [0] * (self._num_rows - count)
        for fixed, new in (
            (self._token_ids, torch.tensor([*token_ids, *padding])[:, None]),
            (self._positions, torch.tensor([*positions, *padding])[:, None]),
            (self._table, table),
            (self._lengths, lengths),
            (self._rows, rows),
        ):
            fixed.copy_(new.pin_memory(), non_blocking=True)
        self._graph.replay()
        # Copy the logits, because sampling changes them in place and the next replay overwrites them.
        return self._logits[:count].clone()


class DecodeGraphs:
    """The recordings for 1, 2, 4, 8, … rows, each made when it is first needed."""

    def __init__(self, forward: Forward, cache: KVCache, *, max_blocks: int, invariant_rows: int | None) -> None:
        """Create the cache of recordings, which is empty at first.

        Args:
            forward: Runs a decode pass.
            cache: The KV cache.
            max_blocks: Blocks of the longest sequence.
            invariant_rows: The only batch size, to which all are padded; None for powers of two.
        """
        self._forward = forward
        self._cache = cache
        self._max_blocks = max_blocks
        self._invariant_rows = invariant_rows
        self._recordings: dict[int, _Recording] = {}
        self._is_off = False

    def decode(self, token_ids: Items[int], positions: Items[int], block_ids: Items[Items[int]]) -> Tensor | None:
        """Compute one token of each sequence.

        Args:
            token_ids: The tokens.
            positions: Their positions.
            block_ids: The blocks of their sequences.

        Returns:
            Logits (num_seqs, vocab_size) float32, or None if this model's decode pass cannot be recorded.
        """
        num_rows = self._invariant_rows or 1 << (len(token_ids) - 1).bit_length()
        if num_rows not in self._recordings and not self._is_off:
            try:
                self._recordings[num_rows] = _Recording(self._forward, self._cache, num_rows, self._max_blocks)
            except RuntimeError as error:
                logger.warning("decoding runs without CUDA graphs: %s", first_line(error))
                self._is_off = True
        recording = self._recordings.get(num_rows)
        return None if recording is None else recording.replay(token_ids, positions, block_ids)
