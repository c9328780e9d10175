"""A run's place in a trace, as far as the server does not trace: nowhere.

spans.py has the same classes for a server that traces; otlp.py says which are used.
"""

from collections.abc import AsyncIterable, Iterable

from inference_server.generation import Event
from tailrace.v1.inference_pb2 import RunRequest

# Of gRPC: pairs of a name and a value.
Metadata = Iterable[tuple[str, str | bytes]]


class RunTrace:
    """One run."""

    def accepted(self) -> None:
        """It waits for a slot from now on."""

    def watched(self, events: AsyncIterable[Event]) -> AsyncIterable[Event]:
        """The reply's events as they are; a run that is traced looks at them."""
        return events

    def end(self, outcome: str) -> None:
        """outcome: completed, cancelled, or the reason of an error."""


_UNTRACED = RunTrace()


class Tracing:
    """What all runs share."""

    def run(self, request: RunRequest, request_id: str, metadata: Metadata) -> RunTrace:
        """A run begins; nothing about the request was checked yet. metadata: with the caller's W3C context, if it has one."""
        return _UNTRACED

    def start(self) -> None:
        """Say where traces go."""

    async def close(self) -> None:
        """Send what is not sent yet; some seconds at most."""
