"""Cancels work when its client disconnects. Uses ASGI's `receive` and does not depend on the work."""

import asyncio
from collections.abc import Coroutine

from starlette.types import Receive


async def until_disconnect(receive: Receive, work: Coroutine[object, object, None]) -> None:
    """Await `work`, and cancel it as soon as the client disconnects. The request's body must have been read before.

    Exceptions of `work` are raised; a disconnect is not an error.
    """
    working = asyncio.ensure_future(work)
    watching = asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
    finally:
        # This code also runs when the server cancels the request at the end of the grace period.
        working.cancel()
        watching.cancel()
        await asyncio.wait((working, watching))
    if not working.cancelled():
        working.result()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
