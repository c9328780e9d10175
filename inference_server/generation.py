"""Generation requests, their sampling parameters, and the events of a reply.

Every engine accepts these requests and yields these events. Contains token ids, text, counts, and times in seconds of
time.monotonic(). Does not depend on torch, a tokenizer or gRPC.
"""

import enum
from array import array
from collections.abc import Mapping
from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

from inference_server.errors import TailraceError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


_LOWEST_BIAS = -100.0
_EXCLUDED = -1e9  # below every logit of a model, and far above the logits of tokens that a grammar forbids


class FinishReason(enum.Enum):
    """Reason why a reply ended. The metrics use the values as label values."""

    STOP = "stop"
    LENGTH = "length"
    TIME_LIMIT = "time_limit"
    TOOL_CALLS = "tool_calls"


@dataclass(frozen=True, slots=True)
class LogitBias:
    """Numbers that are added to the logits of tokens.

    Attributes:
        token_ids: Ascending token ids, int32.
        values: The number for each token id, float32.
    """

    token_ids: "array[int]"
    values: "array[float]"

    @classmethod
    def of(cls, biases: Mapping[int, float]) -> "LogitBias":
        """Return the logit bias for `biases`, which has a number from -100 to 100 for each of its token ids.

        `biases` must not be empty. The number -100 excludes a token.
        """
        token_ids = sorted(biases)
        values = (biases[token_id] for token_id in token_ids)
        return cls(array("i", token_ids), array("f", (each if each > _LOWEST_BIAS else _EXCLUDED for each in values)))


PENALTIES: tuple[Literal["repetition_penalty", "frequency_penalty", "presence_penalty"], ...] = (
    "repetition_penalty",
    "frequency_penalty",
    "presence_penalty",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """Sampling parameters of one request. grpc_api/validation.py checks their ranges."""

    seed: int
    temperature: float = 0.6
    top_p: float = 1.0
    top_k: int | None = None
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    min_p: float = 0.0
    logit_bias: LogitBias | None = None
    logprobs: int | None = None  # alternatives per position; None: no log probabilities at all
    ignore_eos: bool = False  # for tests and benchmarks: end tokens are generated like any other

    @property
    def is_greedy(self) -> bool:
        """True for a temperature below 1e-5.

        Logits divided by such a temperature leave only the most likely token, or overflow float32.
        """
        return self.temperature < 1e-5

    @property
    def has_penalties(self) -> bool:
        """True if a penalty is set, so that earlier tokens change the logits."""
        return self.repetition_penalty != 1.0 or self.frequency_penalty != 0.0 or self.presence_penalty != 0.0


@dataclass(frozen=True, slots=True)
class Grammar:
    """Source text of a constraint, for an engine that enforces it in another process."""

    kind: Literal["json_schema", "lark"]
    text: str
    # Lark rules, of which `thought_part` accepts the thoughts before the constrained text; empty: no thoughts.
    before: str = ""


class Constraint(Protocol):
    """Grammar that one reply must follow, with its state after the tokens accepted so far."""

    @property
    def grammar(self) -> Grammar:
        """Source text of the grammar."""

    @property
    def is_complete(self) -> bool:
        """True if only an end token may follow the accepted tokens."""

    def allowed(self) -> "NDArray[np.uint8]":
        """Return a mask of the tokens that may come next, of shape (vocab_size,): 1 for allowed tokens, else 0.

        At least one token is allowed. Raises GrammarError if the grammar exceeds its limits.
        """

    def accept(self, token_id: int) -> None:
        """Advance the state by one token, which must have been allowed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """Request for one reply: tokenised, checked, and with the model's limits applied."""

    request_id: str
    prompt_ids: Items[int]
    sampling: SamplingParams
    max_tokens: int  # within the model's limits, at least 1
    stop: tuple[str, ...] = ()
    continues_prompt: bool = False  # for raw text and a continued turn: the first token keeps its leading space
    time_limit_seconds: float | None = None
    account: str = ""
    reject_if_busy: bool = False
    is_batch: bool = False  # uses the capacity that interactive requests leave
    deadline_seconds: float | None = None  # seconds until the client's deadline
    constraint: Constraint | None = None
    adapter: int = 0  # LoRA adapter: its position in EngineKey.adapters, from 1; 0 for none
    joins_deltas: bool = (
        True  # a slow reader gets one event for several deltas; False: the events do not depend on time
    )


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool that the model requests. `arguments`: a JSON object as text."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Candidate:
    """A token with the natural logarithm of its probability."""

    token_id: int
    logprob: float


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Log probabilities of one position: the chosen token, and the likeliest tokens in descending order."""

    token: Candidate
    top: tuple[Candidate, ...]


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of one request."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0  # prompt tokens whose keys and values came from the prefix cache
    reasoning_tokens: int = 0  # completion tokens that belong to thoughts


@dataclass(frozen=True, slots=True)
class Timings:
    """Durations of a request's phases, in seconds."""

    queue: float
    prefill: float
    decode: float


@dataclass(frozen=True, slots=True)
class Started:
    """First event of a reply: the request has a slot."""

    prompt_tokens: int
    seed: int
    admission_position: int = 1  # requests admitted since this one arrived, including itself


# Not frozen: one is created for every token, and a frozen object takes more than twice as long to create.
@dataclass(slots=True)
class Delta:
    """Further text of a reply, with the number of tokens generated since the previous delta."""

    text: str
    num_tokens: int
    logprobs: tuple[TokenLogprob, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()
    last_token: float = field(default=0.0, compare=False)  # time at which the last of its tokens was sampled
    reasoning: str = ""  # thoughts, which come before the text


@dataclass(frozen=True, slots=True)
class Completed:
    """Last event of a reply that ended without an error."""

    finish_reason: FinishReason
    stop_string: str | None
    usage: Usage
    timings: Timings


@dataclass(frozen=True, slots=True)
class Failed:
    """Last event of a reply that cannot be finished."""

    error: TailraceError


Event = Started | Delta | Completed | Failed


class TextStream(Protocol):
    """Converter from token ids to text deltas (text/detokenizer.py)."""

    def push(self, token_id: int) -> str:
        """Return the text that is final after this token; often empty."""

    def finish(self) -> str:
        """Return the rest of the text."""

    @property
    def stop_string(self) -> str | None:
        """The stop string that ended the text, or None."""

    @property
    def num_reasoning_tokens(self) -> int:
        """Tokens so far that belong to thoughts."""
