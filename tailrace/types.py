"""Values that the clients take and return: messages, tools, events of a reply, replies, vectors, models."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

FinishReason = Literal["stop", "length", "tool_calls"]
Task = Literal["text-generation", "text-embeddings"]


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool that the model requests.

    Attributes:
        name: The tool's name.
        arguments: The arguments: a JSON object as text.
        id: Identifies the call within the conversation.
    """

    name: str
    arguments: str = "{}"
    id: str = ""

    def json(self) -> dict[str, Any]:
        """Return the arguments as a dictionary."""
        parsed: dict[str, Any] = json.loads(self.arguments or "{}")
        return parsed


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may ask the caller to call.

    Attributes:
        name: Its name, 1 to 256 characters.
        description: Its purpose, for the model.
        parameters: JSON Schema of its arguments, of type object; empty: no arguments.
    """

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Message:
    """A message of a conversation.

    Attributes:
        role: "system", "user", "assistant", "tool" or another role of the model's chat template.
        content: The text; may be empty.
        tool_calls: In an assistant's message: the calls that it made.
        tool_call_id: In a tool's message: the id of the call that it answers.
        name: In a tool's message: the name of the tool.
        reasoning: In an assistant's message: the thoughts before its text.
    """

    role: str
    content: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    name: str = ""
    reasoning: str = ""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A possible next token with the natural logarithm of its probability.

    Attributes:
        text: The token's text. An incomplete character at its start or end is replaced with U+FFFD.
        logprob: At most 0.
        bytes: The token's exact bytes; None for raw prompts over REST, where the bridge reports text only.
    """

    text: str
    logprob: float
    bytes: "bytes | None" = None


@dataclass(frozen=True, slots=True)
class TokenLogprob(Candidate):
    """A generated token. `top`: the most likely tokens at its position, as many as were requested."""

    top: tuple[Candidate, ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """Numbers of tokens.

    Attributes:
        prompt_tokens: Tokens of the prompt, including those of the chat template.
        completion_tokens: Generated tokens, including the model's end token.
        cached_tokens: Prompt tokens that were found in the prefix cache.
        reasoning_tokens: Generated tokens that belong to thoughts.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """Tokens of prompt and reply together."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class Started:
    """The server accepted the request. Always the first event.

    Attributes:
        model: Name of the model.
        request_id: Id of the request in the logs of the services.
    """

    model: str
    request_id: str


@dataclass(frozen=True, slots=True)
class TextDelta:
    """More text of the reply. `logprobs`: log probabilities of the new tokens, if they were requested."""

    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    """More text of the model's thoughts, which precede the reply."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCalled:
    """A tool call became complete."""

    call: ToolCall


@dataclass(frozen=True, slots=True)
class Finished:
    """The reply is complete. Always the last event.

    Attributes:
        reason: "stop", "length" (max_tokens, or a limit of the model or of the time) or "tool_calls".
        usage: Token counts of the request.
    """

    reason: FinishReason
    usage: Usage


Event = Started | TextDelta | ReasoningDelta | ToolCalled | Finished


@dataclass(frozen=True, slots=True)
class Reply:
    """A complete reply.

    Attributes:
        text: The text; empty if the model only called tools.
        finish_reason: "stop", "length" or "tool_calls".
        usage: Token counts of the request.
        model: Name of the model.
        request_id: Id of the request in the logs of the services.
        reasoning: The model's thoughts.
        tool_calls: The calls that the model requests.
        logprobs: The log probability of each token, if they were requested.
    """

    text: str
    finish_reason: FinishReason
    usage: Usage
    model: str
    request_id: str
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()

    def __str__(self) -> str:
        return self.text

    @property
    def message(self) -> Message:
        """The reply as the assistant's message, for the next request of the conversation."""
        return Message("assistant", self.text, self.tool_calls, reasoning=self.reasoning)

    def json(self) -> Any:
        """Return the text parsed as JSON. Raises ValueError if it is not JSON, for example because it was cut."""
        return json.loads(self.text)


@dataclass(frozen=True, slots=True)
class Embeddings:
    """Vectors of texts.

    Attributes:
        vectors: One vector for each text, in order: float32 values.
        prompt_tokens: Tokens of all texts.
        model: Name of the model.
    """

    vectors: list[list[float]]
    prompt_tokens: int
    model: str


@dataclass(frozen=True, slots=True)
class Model:
    """A model of the server.

    Attributes:
        name: The name for `model`.
        description: A sentence; may be empty.
        task: "text-generation" or "text-embeddings".
        window: Largest number of tokens of prompt and reply together; of an embedding model, of one text.
        max_output_tokens: Longest reply in tokens; 0 for embedding models.
        dimensions: Length of an embedding model's vectors; 0 for other models.
        adapters: Names of its LoRA adapters.
    """

    name: str
    description: str = ""
    task: Task = "text-generation"
    window: int = 0
    max_output_tokens: int = 0
    dimensions: int = 0
    adapters: tuple[str, ...] = ()
