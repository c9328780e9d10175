"""Holds the state of one request inside an engine: its token ids, its progress, and its times.

Times are seconds of time.monotonic(). Does not depend on torch, a tokenizer or gRPC.
"""

from collections.abc import Set
from dataclasses import dataclass, field
from typing import Protocol

from inference_server.engine.prefix_keys import BlockKeys
from inference_server.engine.reply import Reply
from inference_server.generation import (
    Completed,
    Delta,
    Event,
    FinishReason,
    GenerationRequest,
    TextStream,
    Timings,
    TokenLogprob,
    Usage,
)


class Penalties(Protocol):
    """Counts of the tokens of a sequence with penalties (PenaltyState in engine/native/penalties.py)."""

    def add(self, token_id: int) -> None:
        """Count one generated token."""


@dataclass(eq=False, slots=True, kw_only=True)
class Sequence:
    """Token ids of one request, prompt first, with the progress of their computation."""

    request: GenerationRequest
    text: TextStream
    reply: Reply  # receives the events
    arrived: float
    token_ids: list[int] = field(init=False)
    block_ids: list[int] = field(default_factory=list)  # KV cache blocks, in token order
    block_keys: BlockKeys = field(init=False)  # set by the native scheduler
    num_admitted_before: int = 0  # requests admitted before this one arrived
    admission_position: int = 0  # requests admitted since this one arrived, including itself
    num_computed: int = 0  # leading tokens whose keys and values are in the cache
    num_cached_tokens: int = 0  # prompt tokens found in the prefix cache
    prefill_end: int = field(init=False)  # leading tokens to compute before the next one can be sampled
    admitted: float | None = None
    first_token: float | None = None
    last_token: float | None = None
    penalties: Penalties | None = None  # set at the first prefill if the request has any penalty
    drafting: object | None = None  # state of speculative decoding (engine/native/speculation/)
    unsent_logprobs: list[TokenLogprob] = field(default_factory=list)
    num_unsent: int = 0  # generated tokens that no delta has reported yet
    _full_length: int = field(init=False)  # tokens of the prompt and of the longest reply that the request allows

    def __post_init__(self) -> None:
        self.token_ids = list(self.request.prompt_ids)
        self.prefill_end = len(self.token_ids)
        self._full_length = self.prefill_end + self.request.max_tokens

    @property
    def num_prompt_tokens(self) -> int:
        """Length of the prompt in tokens."""
        return len(self.request.prompt_ids)

    @property
    def num_completion_tokens(self) -> int:
        """Generated tokens so far."""
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_tokens_left(self) -> int:
        """Largest number of tokens that the reply can still get."""
        return self._full_length - len(self.token_ids)

    @property
    def is_prefilling(self) -> bool:
        """True until the prompt is computed; after a preemption, until the reply so far is computed too."""
        return self.num_computed < self.prefill_end

    @property
    def is_at_length(self) -> bool:
        """True if the reply has all tokens that the request allows."""
        return len(self.token_ids) >= self._full_length

    def is_expired(self, now: float) -> bool:
        """Return True if the request's time limit has passed at `now`."""
        limit = self.request.time_limit_seconds
        return limit is not None and now - self.arrived >= limit

    def append(
        self, token_id: int, logprob: TokenLogprob | None, end_ids: Set[int], now: float
    ) -> tuple[str, FinishReason | None]:
        """Append one generated token.

        Args:
            token_id: The token.
            logprob: Log probabilities of the token and its alternatives; None if the request does not ask for them.
            end_ids: Tokens that end a reply.
            now: Time at which the token was sampled.

        Returns:
            The text that this token completes, and the finish reason; None if the reply continues.
        """
        # This method runs for every token of every sequence. It avoids properties, because each read would be a call.
        if self.first_token is None:
            self.first_token = now
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
        if len(self.token_ids) >= self._full_length:
            return text + self.text.finish(), FinishReason.LENGTH
        return text, None

    def take_delta(self, text: str) -> Delta:
        """Return a delta with `text` and all tokens that no delta has reported yet."""
        logprobs: tuple[TokenLogprob, ...] = ()
        if self.unsent_logprobs:
            logprobs = tuple(self.unsent_logprobs)
            self.unsent_logprobs = []
        delta = Delta(text, self.num_unsent, logprobs, last_token=self.last_token or 0.0)
        self.num_unsent = 0
        return delta

    def last_events(self, reason: FinishReason, text: str, now: float) -> list[Event]:
        """Return the events that end the reply: a delta with `text` and the unsent tokens, if any, then Completed."""
        events: list[Event] = [self.take_delta(text)] if text or self.num_unsent else []
        if self.text.stop_string is not None:  # the last text may have completed a stop string
            reason = FinishReason.STOP
        return [*events, Completed(reason, self.text.stop_string, self.usage(), self.timings(now))]

    def usage(self) -> Usage:
        """Return the token counts so far."""
        thoughts = self.text.num_reasoning_tokens
        return Usage(self.num_prompt_tokens, self.num_completion_tokens, self.num_cached_tokens, thoughts)

    def timings(self, now: float) -> Timings:
        """Return the durations of the phases until `now`; a phase that never began took 0 seconds."""
        admitted = self.admitted if self.admitted is not None else now
        first = self.first_token if self.first_token is not None else now
        last = self.last_token if self.last_token is not None else first
        return Timings(admitted - self.arrived, max(0.0, first - admitted), last - first)
