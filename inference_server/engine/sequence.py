"""What a request becomes inside the engine: sampling parameters, the sequence of token ids, and its events.

Knows token ids, counts and times (seconds of time.monotonic). Knows nothing of tensors, tokenizers or gRPC.
"""

import enum
from collections.abc import Sequence as Items
from collections.abc import Set
from dataclasses import dataclass, field
from typing import Any, Protocol

from inference_server.engine.native.block_pool import BlockKeys
from inference_server.errors import TailraceError


class FinishReason(enum.Enum):
    STOP = "stop"
    LENGTH = "length"
    TIME_LIMIT = "time_limit"
    TOOL_CALLS = "tool_calls"


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How tokens are chosen. Ranges are the contract's (inference.proto) and checked in checks.py."""

    seed: int
    temperature: float = 0.6
    top_p: float = 1.0
    top_k: int | None = None
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logprobs: int | None = None  # alternatives per position; None: no log probabilities at all
    ignore_eos: bool = False  # for tests and benchmarks: end tokens are generated like any other

    @property
    def is_greedy(self) -> bool:
        """Below 1e-5 a temperature means 0: dividing float32 logits by it leaves one token anyway, or overflows."""
        return self.temperature < 1e-5

    @property
    def has_penalties(self) -> bool:
        return self.repetition_penalty != 1.0 or self.frequency_penalty != 0.0 or self.presence_penalty != 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """One request as the engine takes it: already tokenised, checked and limited."""

    request_id: str
    prompt_ids: Items[int]
    sampling: SamplingParams
    max_tokens: int  # what the model's limits leave, at least 1
    stop: tuple[str, ...] = ()
    continues_prompt: bool = False  # raw text: the reply's first token keeps the space it begins with
    time_limit_seconds: float | None = None
    account: str = ""
    reject_if_busy: bool = False
    deadline_seconds: float | None = None  # until the caller gives up
    constraint: Any = None  # grammar.Constraint: which tokens may come next


@dataclass(frozen=True, slots=True)
class ToolCall:
    """The model's wish that a tool be called. `arguments`: a JSON object as text."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Candidate:
    token_id: int
    logprob: float


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    token: Candidate
    top: tuple[Candidate, ...]


@dataclass(frozen=True, slots=True)
class Usage:
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0  # of the prompt's, those whose keys and values were taken over from an earlier sequence


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds."""

    queue: float
    prefill: float
    decode: float


@dataclass(frozen=True, slots=True)
class Started:
    prompt_tokens: int
    seed: int
    turn: int = 1  # how many were admitted since the request came, itself included


@dataclass(frozen=True, slots=True)
class Delta:
    text: str
    num_tokens: int
    logprobs: tuple[TokenLogprob, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()
    last_token: float = field(default=0.0, compare=False)  # when the last of its tokens was sampled


@dataclass(frozen=True, slots=True)
class Completed:
    finish_reason: FinishReason
    stop_string: str | None
    usage: Usage
    timings: Timings


@dataclass(frozen=True, slots=True)
class Failed:
    error: TailraceError


Event = Started | Delta | Completed | Failed


class TextStream(Protocol):
    """Turns token ids into text deltas (detokenizer.py)."""

    def push(self, token_id: int) -> str: ...
    def finish(self) -> str: ...

    @property
    def stop_string(self) -> str | None: ...


@dataclass(eq=False, slots=True, kw_only=True)
class Sequence:
    """The token ids of one request, prompt first, and how far the model has come with them."""

    request: GenerationRequest
    text: TextStream
    sink: Any  # the engine's handle of whoever listens
    arrived: float
    token_ids: list[int] = field(init=False)
    block_ids: list[int] = field(default_factory=list)  # of the KV cache, in the order of the tokens
    block_keys: BlockKeys = field(init=False)  # the scheduler's
    num_admitted_before: int = 0  # the scheduler's number, when this one came to wait
    turn: int = 0  # how many were admitted since then, this one included
    num_computed: int = 0  # tokens whose keys and values are in the cache
    num_cached_tokens: int = 0
    prefill_end: int = field(init=False)  # tokens to compute before the next one can be sampled
    admitted: float | None = None
    first_token: float | None = None
    last_token: float | None = None
    penalties: Any = None  # sampling.PenaltyState, if any penalty is set
    unsent_logprobs: list[TokenLogprob] = field(default_factory=list)
    num_unsent: int = 0  # generated tokens that no delta has reported yet

    def __post_init__(self) -> None:
        self.token_ids = list(self.request.prompt_ids)
        self.prefill_end = len(self.token_ids)

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.request.prompt_ids)

    @property
    def num_completion_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def is_prefilling(self) -> bool:
        """True until the whole prompt has been computed, or what was lost of prompt and reply when blocks ran out."""
        return self.num_computed < self.prefill_end

    @property
    def is_at_length(self) -> bool:
        return self.num_completion_tokens >= self.request.max_tokens

    def is_expired(self, now: float) -> bool:
        limit = self.request.time_limit_seconds
        return limit is not None and now - self.arrived >= limit

    def append(
        self, token_id: int, logprob: TokenLogprob | None, end_ids: Set[int], now: float
    ) -> tuple[str, FinishReason | None]:
        """One more token of the reply: the text that became certain with it, and why the reply ends here, if it does."""
        self.first_token = self.first_token or now
        self.last_token = now
        self.token_ids.append(token_id)
        if token_id in end_ids and not self.request.sampling.ignore_eos:
            return self.text.finish(), FinishReason.STOP
        is_complete = False
        if (constraint := self.request.constraint) is not None:
            constraint.accept(token_id)
            is_complete = constraint.is_complete
        self.num_unsent += 1
        if logprob is not None:
            self.unsent_logprobs.append(logprob)
        text = self.text.push(token_id)
        if self.text.stop_string is not None:
            return text, FinishReason.STOP
        if is_complete:
            return text + self.text.finish(), FinishReason.STOP
        if self.is_at_length:
            return text + self.text.finish(), FinishReason.LENGTH
        return text, None

    def take_delta(self, text: str) -> Delta:
        """`text` with all tokens that no delta has reported yet."""
        delta = Delta(text, self.num_unsent, tuple(self.unsent_logprobs), last_token=self.last_token or 0.0)
        self.num_unsent = 0
        self.unsent_logprobs = []
        return delta

    def last_events(self, reason: FinishReason, text: str, now: float) -> list[Event]:
        """What ends the reply, `text` being the last of it."""
        events: list[Event] = [self.take_delta(text)] if text or self.num_unsent else []
        if self.text.stop_string is not None:  # it may have shown itself in the very last text
            reason = FinishReason.STOP
        return [*events, Completed(reason, self.text.stop_string, self.usage(), self.timings(now))]

    def usage(self) -> Usage:
        return Usage(self.num_prompt_tokens, self.num_completion_tokens, self.num_cached_tokens)

    def timings(self, now: float) -> Timings:
        """Where the time went until `now`; phases that never began took 0 seconds."""
        admitted = self.admitted if self.admitted is not None else now
        first = self.first_token if self.first_token is not None else now
        last = self.last_token if self.last_token is not None else first
        return Timings(admitted - self.arrived, max(0.0, first - admitted), last - first)
