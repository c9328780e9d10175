"""A catalog entry whose model is loaded: its limits, its prompt encoder and the engine that it shares."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from inference_server.engine.base import BaseEngine
from inference_server.engine.reply import Reply
from inference_server.errors import NoRoomForReply, PromptTooLong, UnknownAdapter
from inference_server.generation import Constraint, GenerationRequest
from inference_server.precision import Precision
from inference_server.serving.catalog import CatalogEntry
from inference_server.text.detokenizer import ReplyText, reply_detokenizer, reply_text
from inference_server.text.grammar import Grammars
from inference_server.text.prompt_encoder import PromptEncoder
from inference_server.text.reasoning.formats import ThoughtState
from inference_server.text.reasoning.model import ModelThoughts
from inference_server.text.reasoning.reply import ThoughtfulReplyText
from inference_server.text.tool_formats import ToolFormat, visible_control_tokens


@dataclass(frozen=True, slots=True)
class HostedModel:
    """A loaded catalog entry with task = "generation".

    Attributes:
        task: The model's purpose.
        entry: The entry.
        precision: The precision in use on the model's device.
        window: Longest prompt and reply together, in tokens.
        prompts: Encodes prompts.
        engine: Runs the requests; other entries with the same weights may use it too.
        grammars: Compiles constraints for replies.
        tool_format: Syntax of tool calls.
        thoughts: Finds the thoughts in the model's replies; None: replies are not searched for thoughts.
        sampling: Default values of sampling parameters, by their names in SAMPLING_FIELDS.
        adapters: Positions of the entry's LoRA adapters in EngineKey.adapters, from 1, by name.
    """

    task: ClassVar[Literal["generation"]] = "generation"

    entry: CatalogEntry
    precision: Precision
    window: int
    prompts: PromptEncoder
    engine: BaseEngine
    grammars: Grammars
    tool_format: ToolFormat
    thoughts: ModelThoughts | None = None
    sampling: Mapping[str, float] = field(default_factory=dict)
    adapters: Mapping[str, int] = field(default_factory=dict)

    @property
    def context_length(self) -> int:
        """Longest prompt in tokens. At least one token of the window is left for the reply."""
        return min(self.entry.context_length, self.window - 1)

    def max_tokens(self, num_prompt_tokens: int, wanted: int | None = None) -> int:
        """Return the longest reply in tokens: `wanted`, reduced to the sequence length and to the rest of the window.

        Args:
            num_prompt_tokens: Length of the prompt in tokens.
            wanted: The request's own limit in tokens; None: no limit.
        """
        limit = min(self.entry.sequence_length, self.window - num_prompt_tokens)
        return max(0, limit if wanted is None else min(limit, wanted))

    def adapter(self, name: str) -> int:
        """Return the position of a LoRA adapter in EngineKey.adapters, from 1; 0 for an empty name.

        Raises:
            UnknownAdapter: The model has no adapter of this name.
        """
        if name and name not in self.adapters:
            raise UnknownAdapter(self.entry.name, name, list(self.adapters))
        return self.adapters[name] if name else 0

    def check_length(self, num_prompt_tokens: int, max_tokens: int | None = None) -> None:
        """Check that a prompt fits, together with `max_tokens` if that is not None. Both are in tokens.

        Raises:
            PromptTooLong: The prompt is longer than `context_length`.
            NoRoomForReply: Prompt and `max_tokens` together are longer than `window`.
        """
        if num_prompt_tokens > self.context_length:
            raise PromptTooLong(num_prompt_tokens, self.context_length)
        if max_tokens is not None and num_prompt_tokens + max_tokens > self.window:
            raise NoRoomForReply(num_prompt_tokens, max_tokens, self.window)

    def text(
        self, request: GenerationRequest, thoughts: ThoughtState = "none", *, shows_calls: bool = False
    ) -> ReplyText | ThoughtfulReplyText:
        """Return the text stream of a new reply.

        Args:
            request: The request.
            thoughts: State of the thoughts at the end of the prompt.
            shows_calls: True if the text includes the control tokens of tool calls.
        """
        decoder = self.prompts.decoder
        visible = visible_control_tokens(self.tool_format) if shows_calls else frozenset()
        if self.thoughts is None or thoughts == "none":
            return reply_text(decoder.decode_function(visible), request)
        decode = decoder.decode_function(visible | self.thoughts.reasoning.visible_tokens)
        return self.thoughts.text(reply_detokenizer(decode, request), request.stop, thoughts)

    def constrain(self, constraint: Constraint, thoughts: ThoughtState) -> Constraint:
        """Return a constraint that applies after the reply's thoughts.

        Args:
            constraint: Constraint of the text after the thoughts.
            thoughts: State of the thoughts at the end of the prompt.
        """
        return constraint if self.thoughts is None else self.thoughts.constrain(constraint, thoughts)

    def submit(self, request: GenerationRequest, text: ReplyText | ThoughtfulReplyText | None = None) -> Reply:
        """Submit a request to the engine.

        Args:
            request: The request; its prompt fits (see `check_length`).
            text: The text stream of its reply; None: a new one without thoughts.

        Raises:
            TailraceError: For the same reasons as BaseEngine.submit.
        """
        return self.engine.submit(request, self.text(request) if text is None else text)
