"""Detects stalled engines: requests are in flight, but the engine makes no step.

After `stall_seconds` without a step, health becomes NOT_SERVING, so that clients use other servers. After further
`exit_seconds`, the process exits, so that its supervisor restarts it.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Protocol

logger = logging.getLogger(__name__)

_POLLS_PER_LIMIT = 10


class StallSource(Protocol):
    """The interface of an engine that the watchdog uses."""

    is_stalled: bool  # the watchdog sets it

    @property
    def seconds_without_progress(self) -> float:
        """Seconds since the last step while requests are in flight, else 0."""


class Watchdog:
    """Marks stalled engines of a server, and reports when the server becomes unhealthy or healthy again."""

    def __init__(
        self,
        engines: Callable[[], Iterable[StallSource]],
        *,
        stall_seconds: float,
        exit_seconds: float,
        on_health: Callable[[bool], Awaitable[None]],
        on_exit: Callable[[], None],
    ) -> None:
        """Create a watchdog, which `watch` starts.

        Args:
            engines: Returns the engines to observe.
            stall_seconds: Seconds without a step after which an engine is stalled.
            exit_seconds: Further seconds after which the process must exit.
            on_health: Called with False when the first engine stalls, and with True when no engine is stalled anymore.
            on_exit: Called once, when the process must exit.
        """
        self._engines = engines
        self._stall_seconds = stall_seconds
        self._exit_seconds = exit_seconds
        self._on_health = on_health
        self._on_exit = on_exit

    async def watch(self) -> None:
        """Poll the engines. Returns after `on_exit`."""
        was_stalled = False
        while True:
            await asyncio.sleep(self._stall_seconds / _POLLS_PER_LIMIT)
            longest = 0.0
            for engine in self._engines():
                seconds = engine.seconds_without_progress
                engine.is_stalled = seconds >= self._stall_seconds
                longest = max(longest, seconds)
            is_stalled = longest >= self._stall_seconds
            if is_stalled != was_stalled:
                was_stalled = is_stalled
                if is_stalled:
                    logger.error("a model has made no step for %.1f s: new requests are rejected", longest)
                else:
                    logger.warning("all models make steps again")
                await self._on_health(not is_stalled)
            if longest >= self._stall_seconds + self._exit_seconds:
                logger.critical("a model has made no step for %.1f s: the process exits", longest)
                self._on_exit()
                return
