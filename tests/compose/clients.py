"""Clients that stream numbers through the bridge. Replies end at max_tokens, so their duration is known."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx

from tests.compose.stack import MODELS

# With a raw prompt, greedy sampling and no penalty for repeated commas, a sequence of numbers ends only at max_tokens.
NUMBERS = {
    "prompt": "1, 2, 3, 4, 5, 6, 7, 8,",
    "raw": True,
    "temperature": 0,
    "frequency_penalty": 0,
    "stream": True,
}


@dataclass
class Reply:
    """The part of a reply that a client has received so far."""

    status: int = 0
    events: list[str] = field(default_factory=list)
    begun: threading.Event = field(default_factory=threading.Event)

    @property
    def is_whole(self) -> bool:
        return self.events[-1:] == ["data: [DONE]"]

    @property
    def num_tokens(self) -> int:
        """The completion tokens that the usage event reports. It is the last event but one."""
        return int(json.loads(self.events[-2].removeprefix("data: "))["usage"]["completion_tokens"])

    @property
    def failed_with_an_event(self) -> bool:
        """True if an error was the last event, with no end of the stream after it."""
        return self.begun.is_set() and "errors" in json.loads(self.events[-1].removeprefix("data: "))


def ask(http: httpx.Client, reply: Reply, *, max_tokens: int) -> Reply:
    with http.stream("POST", MODELS[1], json=NUMBERS | {"max_tokens": max_tokens}) as response:
        reply.status = response.status_code
        for line in response.iter_lines():
            reply.events += [line] if line else []
            reply.begun.set()
    return reply


@contextmanager
def streams(http: httpx.Client, number: int, *, max_tokens: int) -> Iterator[list[Future[Reply]]]:
    """Open `number` streams in parallel. Yields when all have begun."""
    replies = [Reply() for _ in range(number)]
    with ThreadPoolExecutor(number) as threads:
        futures = [threads.submit(ask, http, reply, max_tokens=max_tokens) for reply in replies]
        assert all(reply.begun.wait(60) for reply in replies)
        yield futures


@contextmanager
def load(
    http: httpx.Client, clients: int, *, max_tokens: int = 20, pause_seconds: float = 0.0
) -> Iterator[list[Reply]]:
    """Run clients that each send one request after the other until the block ends. Yields the list of their replies.

    Without pauses they take as much of the processor as the servers that start meanwhile."""
    over = threading.Event()
    replies: list[Reply] = []

    def client() -> None:
        while not over.is_set():
            replies.append(ask(http, Reply(), max_tokens=max_tokens))
            over.wait(pause_seconds)

    with ThreadPoolExecutor(clients) as threads:
        futures = [threads.submit(client) for _ in range(clients)]
        try:
            yield replies
        finally:
            over.set()
    for future in futures:
        future.result()
    assert replies, "nothing was sent"


def wait_until(condition: Callable[[], bool], *, seconds: float) -> float:
    """Wait for the condition. Returns the time in seconds, or raises AssertionError after `seconds`."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, f"not within {seconds:.0f} s"
        time.sleep(0.2)
    return time.monotonic() - began
