"""Allocates the blocks of the KV cache to sequences, and finds cached blocks of earlier prompts (prefix cache).

A block contains the keys and values of `block_size` consecutive tokens in all layers. Full blocks are registered under a
key of all tokens up to their end (prefix_keys.py), so that a prompt with the same beginning reuses them. A registered block
without users stays until its memory is needed, and the least recently used one is evicted first. This module works with
block numbers only and does not depend on tensors.
"""

from collections import Counter, OrderedDict
from collections.abc import Iterable
from collections.abc import Sequence as Items

from inference_server.engine.prefix_keys import PrefixKey


class BlockPool:
    """Blocks of one KV cache, with the number of users of each."""

    def __init__(
        self, *, num_blocks: int, block_size: int, num_reserved: int = 1, max_unused_blocks: int | None = None
    ) -> None:
        """Create a pool whose blocks are all free.

        Args:
            num_blocks: Blocks that sequences can get.
            block_size: Tokens per block.
            num_reserved: Number of the first block that sequences can get; smaller numbers are never allocated.
            max_unused_blocks: Blocks without users that stay registered for later prompts; None: any number, 0: the
                prefix cache is off.
        """
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._max_unused = num_blocks if max_unused_blocks is None else max_unused_blocks
        self._num_users = [0] * (num_reserved + num_blocks)
        self._keys: dict[int, PrefixKey] = {}  # keys by registered block
        self._by_key: dict[PrefixKey, int] = {}
        # Registered blocks without users; least recently used first.
        self._unused: OrderedDict[int, None] = OrderedDict()
        self._free: list[int] = []  # blocks used before, whose memory the system has already allocated
        self._next_fresh = num_reserved
        self._end = num_reserved + num_blocks

    @property
    def num_available(self) -> int:
        """Number of blocks that `allocate` can return."""
        return len(self._free) + len(self._unused) + self._end - self._next_fresh

    def num_available_after(self, released: Items[int], shared: Items[int]) -> int:
        """Return the number of blocks that `allocate` could return after sharing some blocks and releasing others.

        Args:
            released: Blocks to release, each listed once for each user that it loses.
            shared: Registered blocks, each listed once, that get one more user before the release.
        """
        kept = set(shared)
        num_freed = sum(
            self._num_users[block] == count for block, count in Counter(released).items() if block not in kept
        )
        return self.num_available + num_freed - sum(not self._num_users[block] for block in kept)

    @property
    def has_prefix_cache(self) -> bool:
        """True if full blocks are registered for later prompts."""
        return self._max_unused > 0

    def blocks_for(self, num_tokens: int) -> int:
        """Return the number of blocks that `num_tokens` tokens need."""
        return -(-num_tokens // self.block_size)

    def allocate(self, count: int) -> list[int] | None:
        """Return `count` blocks of undefined content, or None, without a change, if fewer are available."""
        if count > self.num_available:
            return None
        blocks = [self._take() for _ in range(count)]
        for block in blocks:
            self._num_users[block] = 1
        return blocks

    def share(self, blocks: Iterable[int]) -> None:
        """Add a user to each of these registered blocks."""
        for block in blocks:
            self._num_users[block] += 1
            self._unused.pop(block, None)

    def release(self, blocks: Items[int]) -> None:
        """Remove a user from each block. Expects the blocks in the order of the sequence.

        The last blocks of the sequence will be evicted before the blocks that they depend on.
        """
        for block in reversed(blocks):
            self._num_users[block] -= 1
            if self._num_users[block]:
                continue
            if block in self._keys:
                self._unused[block] = None
            else:
                self._free.append(block)
        while len(self._unused) > self._max_unused:
            self._free.append(self._evict())

    def register(self, block: int, key: PrefixKey) -> None:
        """Make a full, computed block available to later prompts.

        Has no effect if a block with this key is registered.
        """
        if self._max_unused and key not in self._by_key and block not in self._keys:
            self._by_key[key] = block
            self._keys[block] = key

    def forget(self, blocks: Iterable[int]) -> None:
        """Unregister blocks whose computation failed, so that no prompt reuses them."""
        for block in blocks:
            self._unregister(block)
            if block in self._unused:
                del self._unused[block]
                self._free.append(block)

    def match(self, keys: Iterable[PrefixKey]) -> list[int]:
        """Return the registered blocks of a prompt's keys, up to the first key without a block."""
        found = []
        for key in keys:
            block = self._by_key.get(key)
            if block is None:
                break
            found.append(block)
        return found

    def _take(self) -> int:
        if self._free:
            return self._free.pop()
        if self._next_fresh < self._end:
            self._next_fresh += 1
            return self._next_fresh - 1
        return self._evict()

    def _evict(self) -> int:
        block, _ = self._unused.popitem(last=False)
        self._unregister(block)
        return block

    def _unregister(self, block: int) -> None:
        key = self._keys.pop(block, None)
        if key is not None:
            del self._by_key[key]
