"""Defines the interface of tracing, with classes that record nothing.

spans.py and embed_span.py contain the classes that record spans. exporter.py chooses between those classes and the
ones in this module.
"""

from collections.abc import AsyncIterable, Iterable

from inference_server.generation import Event
from tailrace.v1.inference_pb2 import EmbedRequest, RunRequest

# Metadata of a gRPC call: pairs of a name and a value.
Metadata = Iterable[tuple[str, str | bytes]]


class RunTrace:
    """The trace of a run. This class records nothing; subclasses override its methods."""

    def accepted(self) -> None:
        """Record that the request waits for a slot from now on."""

    def observe(self, events: AsyncIterable[Event]) -> AsyncIterable[Event]:
        """Return the reply's events unchanged, and record each one when it is read."""
        return events

    def finish(self, outcome: str) -> None:
        """Finish the trace. `outcome` is "completed", "cancelled", or the reason of an error."""


class EmbedTrace:
    """The trace of an embedding request. This class records nothing; subclasses override its methods."""

    def accepted(self) -> None:
        """Record that the engine accepted the request, which now waits for a batch."""

    def computed(self, started: float | None, prompt_tokens: int) -> None:
        """Record that the vectors are complete.

        Args:
            started: Time at which the first batch with a text of the request began, in seconds of time.monotonic().
            prompt_tokens: Tokens of all texts.
        """

    def finish(self, outcome: str) -> None:
        """Finish the trace. `outcome` is "completed", "cancelled", or the reason of an error."""


_UNTRACED = RunTrace()
_UNTRACED_EMBED = EmbedTrace()


class NullTracing:
    """Factory of traces. This class returns traces that record nothing."""

    def run(self, request: RunRequest, request_id: str, metadata: Metadata) -> RunTrace:
        """Return the trace of a run that begins now.

        Args:
            request: The request, which is not validated yet.
            request_id: Its id.
            metadata: Metadata of the call; it may contain the W3C context of the client's trace.
        """
        return _UNTRACED

    def embed(self, request: EmbedRequest, request_id: str, metadata: Metadata) -> EmbedTrace:
        """Return the trace of an embedding request that begins now. The parameters are those of `run`."""
        return _UNTRACED_EMBED

    def start(self) -> None:
        """Log the destination of the traces, if they are exported."""

    async def close(self) -> None:
        """Send the remaining spans, which takes a few seconds at most."""
