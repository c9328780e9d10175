"""Computes the prefix-cache keys of a growing sequence's full blocks.

Uses token ids only. Does not depend on torch or on the pool that stores the blocks.
"""

import hashlib
from array import array
from collections.abc import Sequence as Items

PrefixKey = bytes


class BlockKeys:
    """Keys of one sequence's full blocks: SHA-256 over the block's tokens and the previous block's key.

    Equal keys mean equal tokens from the first token on, an equal `scope` and an equal `adapter`. A collision of two
    256-bit hashes is not handled.
    """

    def __init__(self, block_size: int, scope: str = "", adapter: int = 0) -> None:
        """Create the keys of a sequence without tokens.

        Args:
            block_size: Tokens per block.
            scope: Account whose sequences may share the blocks; empty: all accounts.
            adapter: Number of the LoRA adapter with which the blocks are computed, from 1; 0: none.
        """
        self._block_size = block_size
        self._root = hashlib.sha256(f"{adapter}:{scope}".encode()).digest()
        self._keys: list[PrefixKey] = []

    def get(self, token_ids: Items[int], num_blocks: int) -> list[PrefixKey]:
        """Return the keys of the first `num_blocks` blocks of `token_ids`, which may only grow between calls."""
        while len(self._keys) < num_blocks:
            start = len(self._keys) * self._block_size
            tokens = array("q", token_ids[start : start + self._block_size])
            before = self._keys[-1] if self._keys else self._root
            self._keys.append(hashlib.sha256(before + tokens.tobytes()).digest())
        return self._keys[:num_blocks]
