"""The table of sampling parameters, and the limits of a request, for both services.

The REST schemas, the gRPC validation, the conversions and the documentation are made from this table. A sampling parameter
has the same name everywhere: in a JSON body, in `tailrace.v1.Sampling`, and in the engine's SamplingParams.

Sources: Workers AI's published schema of llama-2-7b-chat-int8 for the REST ranges, OpenAI's API reference for the
    ranges of its routes, inference.proto for gRPC.
"""

from dataclasses import dataclass
from typing import Literal

MAX_STOP_STRINGS = 16
MAX_STOP_LENGTH = 256  # in characters
MAX_TOP_LOGPROBS = 20
# Largest number of texts in one embedding request.
MAX_EMBEDDED_TEXTS = 2_048
MAX_TOOLS = 128
MAX_BIASED_TOKENS = 1024  # tokens of one request with a bias
MAX_BIAS = 100  # a bias is -MAX_BIAS to MAX_BIAS
MAX_NAME_LENGTH = 256  # of models, tools and accounts, in characters
MAX_ROLE_LENGTH = 64  # in characters
MAX_CHOICES = 8  # replies to one request of OpenAI's routes
DEFAULT_TEMPERATURE = 0.6
# Seed of a request without one in deterministic mode.
DETERMINISTIC_SEED = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """An interval of numbers.

    Attributes:
        minimum: Lower bound; None: unbounded.
        maximum: Upper bound, inclusive; None: unbounded.
        is_above: True if `minimum` is exclusive.
    """

    minimum: float | None = None
    maximum: float | None = None
    is_above: bool = False

    def __contains__(self, value: float) -> bool:
        """Return True if `value` is in the interval; False for NaN."""
        if self.minimum is not None and not (value > self.minimum if self.is_above else value >= self.minimum):
            return False
        return value == value and (self.maximum is None or value <= self.maximum)

    def __str__(self) -> str:
        """Describe the interval as an error message does: "0 to 5", "above 0, at most 2", "at least 1"."""
        if self.minimum is None:
            return "any number" if self.maximum is None else f"at most {self.maximum}"
        if self.maximum is None:
            return f"above {self.minimum}" if self.is_above else f"at least {self.minimum}"
        if self.is_above:
            return f"above {self.minimum}, at most {self.maximum}"
        return f"{self.minimum} to {self.maximum}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingField:
    """A sampling parameter.

    Attributes:
        name: Its name in JSON bodies, in inference.proto and in SamplingParams.
        kind: JSON type of its value.
        meaning: Its effect, one sentence for the documentation.
        default: Value that applies if the request has none, in the documentation's words.
        grpc: Range that the gRPC validation accepts.
        rest: Range that /ai/run accepts.
        openai: Range that OpenAI's routes accept; None: the same as `rest`.
        shown_default: Value of the keyword `default` in the REST schemas; None: the schemas do not have the keyword.
        description: Description in the REST schemas; empty: none.
        is_engine_default: True if SamplingParams has its own default, so that only given values are passed on.
        is_traced: True if OpenTelemetry's conventions define gen_ai.request.<name>.
    """

    name: str
    kind: Literal["number", "integer"]
    meaning: str
    default: str
    grpc: Range
    rest: Range
    openai: Range | None = None
    shown_default: float | None = None
    description: str = ""
    is_engine_default: bool = True
    is_traced: bool = True


SAMPLING_FIELDS = (
    SamplingField(
        name="max_tokens",
        kind="integer",
        meaning="Upper bound on generated tokens. Larger values are reduced to the model's sequence length.",
        default="the sequence length; 256 where a reply of /ai/run is not streamed",
        grpc=Range(minimum=1),
        rest=Range(minimum=1),
        description="256 by default; in a stream the model's sequence length",
        is_engine_default=False,
    ),
    SamplingField(
        name="temperature",
        kind="number",
        meaning="Divides the logits; 0 always selects the most likely token (greedy decoding).",
        default=f"{DEFAULT_TEMPERATURE}",
        grpc=Range(minimum=0, maximum=5),
        rest=Range(minimum=0, maximum=5),
        shown_default=DEFAULT_TEMPERATURE,
    ),
    SamplingField(
        name="top_p",
        kind="number",
        meaning="Keeps the smallest set of most likely tokens whose probabilities add up to this value.",
        default="1: all tokens",
        grpc=Range(minimum=0, maximum=1, is_above=True),
        rest=Range(minimum=0.001, maximum=1),
        openai=Range(minimum=0, maximum=1),
    ),
    SamplingField(
        name="top_k",
        kind="integer",
        meaning="Keeps this many of the most likely tokens.",
        default="all tokens",
        grpc=Range(minimum=1),
        rest=Range(minimum=1, maximum=50),
        openai=Range(minimum=1),
    ),
    SamplingField(
        name="min_p",
        kind="number",
        meaning="Keeps the tokens whose probability is at least this fraction of the most likely token's.",
        default="0: all tokens",
        grpc=Range(minimum=0, maximum=1),
        rest=Range(minimum=0, maximum=1),
        is_traced=False,
    ),
    SamplingField(
        name="seed",
        kind="integer",
        meaning="Seed of the random numbers. The draw for a token depends on the seed and the token's position alone.",
        default="drawn by the server, which reports it",
        grpc=Range(minimum=0),
        rest=Range(minimum=1, maximum=9_999_999_999),
        openai=Range(minimum=-(2**63), maximum=2**63 - 1),
        is_engine_default=False,
    ),
    SamplingField(
        name="repetition_penalty",
        kind="number",
        meaning="Divides positive and multiplies negative logits of tokens that occur in the prompt or the reply.",
        default="1: no effect",
        grpc=Range(minimum=0, maximum=2, is_above=True),
        rest=Range(minimum=0, maximum=2, is_above=True),
        is_traced=False,
    ),
    SamplingField(
        name="frequency_penalty",
        kind="number",
        meaning="Subtracted from a token's logit once for each of its occurrences in the reply.",
        default="0: no effect",
        grpc=Range(minimum=-2, maximum=2),
        rest=Range(minimum=-2, maximum=2),
    ),
    SamplingField(
        name="presence_penalty",
        kind="number",
        meaning="Subtracted from a token's logit if the token occurs in the reply.",
        default="0: no effect",
        grpc=Range(minimum=-2, maximum=2),
        rest=Range(minimum=-2, maximum=2),
    ),
)
