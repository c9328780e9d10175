"""Looks whether the models move: work that waits without a step is told by health, and in the end by the process's end.

A supervisor starts the process anew; while it hangs, nobody is sent to it.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Protocol

logger = logging.getLogger(__name__)

_LOOKS_PER_LIMIT = 10


class Watched(Protocol):
    is_stalled: bool

    @property
    def seconds_without_progress(self) -> float: ...


class Watchdog:
    def __init__(
        self,
        engines: Callable[[], Iterable[Watched]],
        *,
        stall_seconds: float,
        exit_seconds: float,
        tell: Callable[[bool], Awaitable[None]],
        give_up: Callable[[], None],
    ) -> None:
        """`tell` is called with False when an engine has stood still for `stall_seconds`, and with True when all move again;
        `give_up` once, `exit_seconds` after that."""
        self._engines = engines
        self._stall_seconds = stall_seconds
        self._exit_seconds = exit_seconds
        self._tell = tell
        self._give_up = give_up

    async def watch(self) -> None:
        """Returns after `give_up`."""
        was_stalled = False
        while True:
            await asyncio.sleep(self._stall_seconds / _LOOKS_PER_LIMIT)
            longest = 0.0
            for engine in self._engines():
                seconds = engine.seconds_without_progress
                engine.is_stalled = seconds >= self._stall_seconds
                longest = max(longest, seconds)
            is_stalled = longest >= self._stall_seconds
            if is_stalled != was_stalled:
                was_stalled = is_stalled
                if is_stalled:
                    logger.error("a model has made no step for %.1f s: new requests are refused", longest)
                else:
                    logger.warning("the models move again")
                await self._tell(not is_stalled)
            if longest >= self._stall_seconds + self._exit_seconds:
                logger.critical("a model has made no step for %.1f s: the process ends to be started anew", longest)
                self._give_up()
                return
