"""Defines the interface of running engines for the server, the metrics and the watchdog, whatever the model's task."""

from typing import Protocol

from inference_server.engine.base import Totals
from inference_server.engine.histogram import Histogram


class RunningEngine(Protocol):
    """A model with its requests. BaseEngine documents the members in detail."""

    is_stalled: bool

    @property
    def num_running(self) -> int:
        """Requests with a slot."""

    @property
    def num_waiting(self) -> int:
        """Requests that wait for a slot."""

    @property
    def num_waiting_batch(self) -> int:
        """Batch requests that wait for a slot. `num_waiting` includes them."""

    @property
    def num_in_flight(self) -> int:
        """Requests that were accepted and have not ended."""

    @property
    def num_slots(self) -> int:
        """Requests that may run at the same time."""

    @property
    def num_blocks_in_use(self) -> int:
        """Blocks of the KV cache that requests hold."""

    @property
    def num_blocks(self) -> int:
        """Blocks of the KV cache that requests can get."""

    @property
    def totals(self) -> Totals:
        """Counts of prefix-cache lookups, preemptions and draft tokens since the start."""

    @property
    def step_tokens(self) -> Histogram:
        """Distribution of the tokens computed in each step."""

    @property
    def utilization(self) -> float:
        """Share of the capacity in use; may exceed 1 while requests wait."""

    @property
    def seconds_without_progress(self) -> float:
        """Seconds since the last step, or since the end of an idle period; 0 without requests in flight."""

    async def drain(self) -> None:
        """Reject new requests, and wait until the accepted ones have ended."""

    async def stop(self) -> None:
        """Stop the computation, and fail the requests in flight."""

    def abandon(self) -> None:
        """Fail all requests of an engine that stays stalled, and reject new ones."""
