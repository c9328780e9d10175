"""Sends comments while an event stream is silent, so that proxies and clients do not end it.

A stream is silent while its request waits for a slot, during a long prefill, and while a tool call is held back. nginx and
load balancers end a silent reply after 60 s, Cloudflare after 100 s, Node's fetch after 300 s. A comment is a line that
starts with a colon. Every client of server-sent events skips it.

Uses ASGI's `send` and does not depend on the events.
"""

import asyncio
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager, suppress

from starlette.types import Message, Send

from http_bridge.protocol.sse import COMMENT

_COMMENT: Message = {"type": "http.response.body", "body": COMMENT, "more_body": True}


@contextmanager
def stream_comments(send: Send, seconds: float) -> Iterator[Send]:
    """Yield the `send` of one event stream, which sends a comment whenever `seconds` have passed without a message.

    Every message must consist of whole events, so that no comment splits one. Enter the context after the response has
    started, and leave it before the message that ends the response: no comment is sent afterwards.

    Args:
        send: ASGI's `send`.
        seconds: Time of silence before each comment, in seconds; 0: no comments.
    """
    if not seconds:
        yield send
        return
    stream = _CommentedStream(send, seconds)
    try:
        yield stream
    finally:
        stream.stop()


class _CommentedStream:
    """Passes messages on, and sends comments between them. One timer runs for each stream."""

    def __init__(self, send: Send, seconds: float) -> None:
        self._send = send
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._sent_at = self._loop.time()
        self._timer = self._loop.call_later(seconds, self._check)
        self._commenting: asyncio.Task[None] | None = None

    def __call__(self, message: Message) -> Awaitable[None]:
        # This runs for each token of every stream, so it does not reset the timer.
        self._sent_at = self._loop.time()
        return self._send(message)

    def stop(self) -> None:
        """Send no more comments."""
        self._timer.cancel()
        if self._commenting is not None:
            self._commenting.cancel()

    def _check(self) -> None:
        """Send a comment if the stream has been silent, and set the timer for the next check."""
        rest = self._sent_at + self._seconds - self._loop.time()
        if rest <= 0:
            rest = self._seconds
            self._sent_at = self._loop.time()
            # If the client reads slowly, the last comment is still unsent, and no further one is needed.
            if self._commenting is None or self._commenting.done():
                self._commenting = self._loop.create_task(self._comment())
        self._timer = self._loop.call_later(rest, self._check)

    async def _comment(self) -> None:
        # ASGI servers may raise OSError once the client has disconnected. Other code then ends the reply.
        with suppress(OSError):
            await self._send(_COMMENT)
