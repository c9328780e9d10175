"""Which blocks of the KV cache belong to whom, and which hold the beginning of a prompt seen before.

A block holds the keys and values of `block_size` neighbouring tokens in all layers. Full blocks are registered under a
key that stands for every token up to their end, so that a prompt that begins alike takes them over instead of computing
them again; what nobody uses any more stays until its room is needed, least recently used first. Knows token ids and
block numbers; knows nothing of tensors.
"""

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Iterable
from collections.abc import Sequence as Items

Key = bytes


class BlockPool:
    def __init__(
        self, *, num_blocks: int, block_size: int, num_reserved: int = 1, max_unused_blocks: int | None = None
    ) -> None:
        """`num_blocks`: the blocks that sequences can get. The pool never hands out the first `num_reserved` block numbers.

        `max_unused_blocks`: how many that nobody uses may be kept for later prompts while others were never touched;
        None: any number, 0: none at all.
        """
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._max_unused = num_blocks if max_unused_blocks is None else max_unused_blocks
        self._num_users = [0] * (num_reserved + num_blocks)
        self._keys: dict[int, Key] = {}  # of registered blocks
        self._by_key: dict[Key, int] = {}
        self._unused: OrderedDict[int, None] = OrderedDict()  # registered, without users; least recently used first
        self._free: list[int] = []  # touched before: memory that the system has handed out already
        self._next_fresh = num_reserved
        self._end = num_reserved + num_blocks

    @property
    def num_available(self) -> int:
        """Blocks that `allocate` could give."""
        return len(self._free) + len(self._unused) + self._end - self._next_fresh

    def blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def allocate(self, count: int) -> list[int] | None:
        """`count` blocks of undefined content, or None (and nothing changed) if there are not so many."""
        if count > self.num_available:
            return None
        blocks = [self._take() for _ in range(count)]
        for block in blocks:
            self._num_users[block] = 1
        return blocks

    def share(self, blocks: Iterable[int]) -> None:
        """One more user for each of these registered blocks."""
        for block in blocks:
            self._num_users[block] += 1
            self._unused.pop(block, None)

    def release(self, blocks: Items[int]) -> None:
        """One user fewer for each; of a sequence's blocks the last is given up before those it builds on."""
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

    def register(self, block: int, key: Key) -> None:
        """Offer a full block, whose keys and values are computed, to later prompts. Of two alike the first stays."""
        if self._max_unused and key not in self._by_key and block not in self._keys:
            self._by_key[key] = block
            self._keys[block] = key

    def forget(self, blocks: Iterable[int]) -> None:
        """Offer these no more: what they hold came from a computation that failed."""
        for block in blocks:
            self._unregister(block)
            if block in self._unused:
                del self._unused[block]
                self._free.append(block)

    def match(self, keys: Iterable[Key]) -> list[int]:
        """The registered blocks of a prompt's keys, from its beginning to the first that is missing."""
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


class BlockKeys:
    """The keys of a growing sequence's full blocks: SHA-256 over the block's tokens and the key before it.

    Equal keys mean equal tokens from the beginning on (and the equal `scope`); 256 bits leave no room for chance.
    """

    def __init__(self, block_size: int, scope: str = "") -> None:
        self._block_size = block_size
        self._root = hashlib.sha256(scope.encode()).digest()
        self._keys: list[Key] = []

    def of(self, token_ids: Items[int], num_blocks: int) -> list[Key]:
        """Keys of the first `num_blocks` blocks of token_ids, which only ever grow."""
        while len(self._keys) < num_blocks:
            start = len(self._keys) * self._block_size
            tokens = array("q", token_ids[start : start + self._block_size])
            before = self._keys[-1] if self._keys else self._root
            self._keys.append(hashlib.sha256(before + tokens.tobytes()).digest())
        return self._keys[:num_blocks]
