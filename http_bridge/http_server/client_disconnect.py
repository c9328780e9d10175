"""Ends work for a client that is gone. Knows ASGI's `receive`; knows nothing of the work."""

import asyncio
from collections.abc import Coroutine

from starlette.types import Receive


async def until_disconnect(receive: Receive, work: Coroutine[object, object, None]) -> None:
    """Do `work`, and cancel it the moment the client disconnects. The request's body must have been read before.

    Raises what `work` raises; a client that left is no error.
    """
    working = asyncio.ensure_future(work)
    watching = asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
    finally:
        # Also the way out when the server cancels the request itself, at the end of its grace period.
        working.cancel()
        watching.cancel()
        await asyncio.wait((working, watching))
    if not working.cancelled():
        working.result()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
