"""Merges the events of several replies into one stream."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence

from tailrace.v1.inference_pb2 import RunResponse

# Largest number of events that wait for the client. Beyond it, the calls wait too.
_MAX_WAITING = 16
_Item = tuple[int, RunResponse | BaseException | None]


async def merged(replies: Sequence[AsyncIterator[RunResponse]]) -> AsyncGenerator[tuple[int, RunResponse]]:
    """Yield each event with the index of its reply, in the order of arrival. Close the generator with aclosing.

    Raises:
        Exception: The first error of a reply. The caller cancels the calls.
    """
    events: asyncio.Queue[_Item] = asyncio.Queue(_MAX_WAITING)
    tasks = [asyncio.create_task(_pass_on(index, reply, events)) for index, reply in enumerate(replies)]
    num_open = len(tasks)
    try:
        while num_open:
            index, event = await events.get()
            if event is None:
                num_open -= 1
            elif isinstance(event, BaseException):
                raise event
            else:
                yield index, event
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _pass_on(index: int, reply: AsyncIterator[RunResponse], events: asyncio.Queue[_Item]) -> None:
    try:
        async for event in reply:
            await events.put((index, event))
    except Exception as error:
        await events.put((index, error))
    else:
        await events.put((index, None))
