"""The keyword arguments of `run` and `stream`, once for both clients and both transports."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict

from tailrace.types import Message, Tool


class Sampling(TypedDict, total=False):
    """The sampling parameters. `make docs-generate` writes this class from tailrace_shared/request_fields.py."""

    # generated: client sampling
    max_tokens: int
    """Upper bound on generated tokens. Larger values are reduced to the model's sequence length. Range: at least 1.
    Default: the sequence length; 256 where a reply of /ai/run is not streamed."""
    temperature: float
    """Divides the logits; 0 always selects the most likely token (greedy decoding). Range: 0 to 5. Default: 0.6."""
    top_p: float
    """Keeps the smallest set of most likely tokens whose probabilities add up to this value. Range: above 0, at most 1.
    Default: 1: all tokens."""
    top_k: int
    """Keeps this many of the most likely tokens. Range: at least 1. Default: all tokens."""
    min_p: float
    """Keeps the tokens whose probability is at least this fraction of the most likely token's. Range: 0 to 1. Default:
    0: all tokens."""
    seed: int
    """Seed of the random numbers. The draw for a token depends on the seed and the token's position alone. Range: at
    least 0. Default: drawn by the server, which reports it."""
    repetition_penalty: float
    """Divides positive and multiplies negative logits of tokens that occur in the prompt or the reply. Range: above 0,
    at most 2. Default: 1: no effect."""
    frequency_penalty: float
    """Subtracted from a token's logit once for each of its occurrences in the reply. Range: -2 to 2. Default: 0: no
    effect."""
    presence_penalty: float
    """Subtracted from a token's logit if the token occurs in the reply. Range: -2 to 2. Default: 0: no effect."""
    # /generated


class Limits(TypedDict, total=False):
    """Deadlines and retries of one call; the client's own apply where a key is missing."""

    timeout: float | None
    """Seconds for one attempt, until its reply is complete. None: unlimited."""
    total_timeout: float | None
    """Seconds for all attempts and the pauses between them. None: unlimited."""
    retries: int
    """Number of further attempts after a failed one."""


class RunOptions(Sampling, Limits, total=False):
    """Everything that a request for a reply may set besides its prompt and its model."""

    messages: Sequence[Message | Mapping[str, Any]]
    """The conversation, oldest message first, instead of a prompt: messages, or dictionaries as in OpenAI's API."""
    system: str
    """The system message before the prompt or the messages."""
    raw: bool
    """True to continue the prompt without the model's chat template."""
    stop: str | Sequence[str]
    """Texts that end the reply."""
    logit_bias: Mapping[int, float]
    """Number to add to the logit of a token, by its id: -100 to 100."""
    logprobs: int
    """Reports the log probability of each token, and this many alternatives: 0 to 20."""
    tools: Sequence[Tool | Mapping[str, Any]]
    """The tools that the model may call: tools, or dictionaries as in OpenAI's API."""
    tool_choice: str
    """"auto", "none", "required", or the name of the tool that must be called."""
    parallel_tool_calls: bool
    """Whether one reply may contain several calls."""
    json_schema: Mapping[str, Any]
    """JSON Schema that the reply must fit."""
    json_object: bool
    """True for a reply that is any JSON object."""
    adapter: str
    """Name of a LoRA adapter of the model."""
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"]
    """Amount of thinking before the reply."""
    template_arguments: Mapping[str, Any]
    """Variables for the chat template."""
    continue_final_message: bool
    """True to continue the last message, which is an assistant's, instead of starting a new one."""
    reject_if_busy: bool
    """True to refuse the request instead of queueing it if no slot is free."""
