"""A stalled model is reported by health, and finally ends the process."""

import asyncio
from dataclasses import dataclass

from inference_server.engine.watchdog import Watchdog


@dataclass
class Standing:
    seconds_without_progress: float = 0.0
    is_stalled: bool = False


class Told:
    def __init__(self, *engines: Standing) -> None:
        self.health: list[bool] = []
        self.exited = asyncio.Event()
        self.changed = asyncio.Event()
        self.dog = Watchdog(
            lambda: engines, stall_seconds=0.05, exit_seconds=1.0, on_health=self.on_health, on_exit=self.exited.set
        )

    async def on_health(self, is_moving: bool) -> None:
        self.health.append(is_moving)
        self.changed.set()

    async def change(self) -> None:
        async with asyncio.timeout(10):
            await self.changed.wait()
        self.changed.clear()


async def test_health_follows_a_model_that_stalls_and_recovers():
    standing = Standing(0.06)
    told = Told(Standing(), standing)
    watching = asyncio.create_task(told.dog.watch())
    await told.change()
    assert (told.health, standing.is_stalled) == ([False], True)
    standing.seconds_without_progress = 0.0
    await told.change()
    assert (told.health, standing.is_stalled, told.exited.is_set()) == ([False, True], False, False)
    watching.cancel()


async def test_a_model_that_stalls_for_too_long_ends_the_process():
    told = Told(Standing(1.06))
    async with asyncio.timeout(10):
        await told.dog.watch()
    assert told.health == [False] and told.exited.is_set()
