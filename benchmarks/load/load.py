"""Requests to a peer and records of its replies, as values that processes exchange as JSON.

Times are seconds of time.perf_counter, which all processes of one machine share; counts are tokens.
"""

from dataclasses import asdict, dataclass, field
from typing import Any

# Prefix of the error message of a load that timed out. The timeout in seconds follows it.
OUT_OF_TIME = "no end after"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A prompt: `text` with its token ids, or a conversation (`messages`), to which the peer applies its chat template."""

    max_tokens: int  # exact length of the reply
    text: str = ""
    prompt_ids: list[int] = field(default_factory=list)
    messages: list[dict[str, str]] | None = None
    schema: dict[str, Any] | None = None  # JSON Schema that the reply follows; sent to Tailrace only
    after_events: int = 0  # start after each earlier request has received this many events; 0: immediately


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Requests that start together, or one after the other."""

    requests: list[Request]
    timeout_s: float
    sequential: bool = False

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Load":
        requests = [Request(**request) for request in value["requests"]]
        return cls(requests=requests, timeout_s=value["timeout_s"], sequential=value["sequential"])


@dataclass(slots=True, kw_only=True)
class Record:
    """A reply as its client received it."""

    start: float
    events: list[float] = field(default_factory=list)  # arrival of each event that carried text
    completion_tokens: int = 0
    prompt_tokens: int | None = None  # the peer's own count; None if it sent none
    text: str = ""
    error: str | None = None

    @property
    def ttft_s(self) -> float:
        """Time to first token, in seconds."""
        return self.events[0] - self.start

    @property
    def gaps_s(self) -> list[float]:
        """Inter-token latencies in seconds. An event that carries several tokens counts as one event."""
        return [after - before for before, after in zip(self.events, self.events[1:], strict=False)]


@dataclass(slots=True, kw_only=True)
class Outcome:
    """A load's records in the order of its requests, and the CPU seconds that the client used."""

    records: list[Record]
    client_cpu_s: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Outcome":
        return cls(records=[Record(**record) for record in value["records"]], client_cpu_s=value["client_cpu_s"])
