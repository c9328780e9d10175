"""Stores the output items of recent replies, so that a client can refer to an item instead of sending it again.

Vercel's AI SDK refers to items unless its user sets `store` to false. Each bridge process stores the items in memory,
for at most an hour and within 16 MiB. Items of requests with `store: false` are not stored.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

Item = Mapping[str, Any]

_MAX_BYTES = 16 * 2**20
_SECONDS = 3600.0
# Estimated size of an item in memory beyond its text, in bytes.
_OVERHEAD = 1_000


class RecentItems:
    """Items by account and id. The oldest ones are removed first. Thread-safe."""

    def __init__(
        self, *, max_bytes: int = _MAX_BYTES, seconds: float = _SECONDS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Create an empty store.

        Args:
            max_bytes: Largest estimated size of all items together, in bytes.
            seconds: Time in seconds after which an item is no longer returned.
            clock: Returns the current time in seconds.
        """
        self._max_bytes = max_bytes
        self._seconds = seconds
        self._clock = clock
        self._items: OrderedDict[tuple[str, str], tuple[float, int, Item]] = OrderedDict()
        self._num_bytes = 0
        self._lock = threading.Lock()

    def add(self, account: str, item: Item, num_characters: int) -> None:
        """Add an item with a text of `num_characters`. Another account cannot refer to it.

        Only the parts that a conversation needs are stored: the log probabilities of a token take about a thousand
        times as much memory as its text.
        """
        key, kept = (account, str(item["id"])), _kept(item)
        size = num_characters * 4 + _OVERHEAD
        with self._lock:
            _, replaced, _ = self._items.pop(key, (0.0, 0, None))
            self._items[key] = (self._clock() + self._seconds, size, kept)
            self._num_bytes += size - replaced
            while self._items and (self._num_bytes > self._max_bytes or self._oldest_time() <= self._clock()):
                _, (_, removed, _) = self._items.popitem(last=False)
                self._num_bytes -= removed

    def find(self, account: str, item_id: str) -> Item | None:
        """Return an item; None if it is unknown, was removed or is too old."""
        with self._lock:
            found = self._items.get((account, item_id))
        return found[2] if found is not None and found[0] > self._clock() else None

    def _oldest_time(self) -> float:
        return next(iter(self._items.values()))[0]


def _kept(item: Item) -> Item:
    """Return the item without log probabilities and with one copy of its thoughts, which it may contain three times."""
    if item.get("type") == "reasoning":
        return {**item, "summary": [], "encrypted_content": None}
    if item.get("type") == "message":
        return {**item, "content": [{**part, "logprobs": []} for part in item["content"]]}
    return item


# The items of this process, for all routes.
RECENT_ITEMS = RecentItems()
