"""Prepares and renders the inputs of a model's chat template, and determines the state of the thoughts in a prompt."""

from collections.abc import Callable, Iterator, Mapping
from collections.abc import Sequence as Items
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from inference_server.errors import FieldViolation, InvalidField, UnsupportedModel
from inference_server.text.chat.arguments import EFFORTS, Switches, find_switches
from inference_server.text.chat.roles import RoleRules, as_system, find_rules, fitted
from inference_server.text.chat.template import ChatTemplate, Json
from inference_server.text.chat.turns import MESSAGE_NAMES, Turn, as_plain_text, message
from inference_server.text.reasoning.formats import ReasoningFormat, ThoughtState
from inference_server.text.tool_formats import Tool

_USUAL_ROLES = frozenset(("system", "user", "assistant", "tool"))
_MAX_CHECKED_ROLES = 8
_PROBE_TOOL = Tool("probe", "", {"type": "object", "properties": {"QZK": {"type": "string"}}})


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatOptions:
    """Options for the prompt of a conversation.

    Attributes:
        arguments: Variables for the chat template.
        effort: Amount of thinking, one of chat.arguments.EFFORTS; empty: the template's default.
        continue_final_turn: True if the reply continues the last turn, which is an assistant's.
        omit_generation_prompt: True if the prompt ends after the last turn, without the beginning of a reply.
    """

    arguments: Mapping[str, Any] = field(default_factory=dict)
    effort: str = ""
    continue_final_turn: bool = False
    omit_generation_prompt: bool = False


@dataclass(frozen=True, slots=True)
class ChatInputs:
    """Inputs of a chat template for one prompt.

    Attributes:
        messages: The conversation as JSON messages.
        tools: The tools that the template describes, as JSON.
        arguments: Further variables by name.
        continued_key: Key of the text in the last message that the reply continues; empty: none.
        add_generation_prompt: True if the prompt ends with the beginning of the assistant's turn.
    """

    messages: Json
    tools: Json
    arguments: Mapping[str, Json]
    continued_key: str
    add_generation_prompt: bool

    def texts(self) -> Iterator[str]:
        """Yield every string that comes from the client."""
        return _texts([self.messages, self.tools, *self.arguments.values()])

    def mapped(self, change: Callable[[str], str]) -> "ChatInputs":
        """Return a copy with `change` applied to every string that comes from the client."""
        arguments = {name: _mapped(value, change) for name, value in self.arguments.items()}
        return replace(
            self, messages=_mapped(self.messages, change), tools=_mapped(self.tools, change), arguments=arguments
        )


class ChatPrompts:
    """Builder of prompts for one model's chat template."""

    def __init__(self, template: ChatTemplate, reasoning: ReasoningFormat | None) -> None:
        """Create a builder for a template. `reasoning`: format of the model's thoughts; None: it has no thoughts."""
        self.template = template
        self._reasoning = reasoning

    @cached_property
    def rules(self) -> RoleRules:
        """The changes to conversations that the template needs."""
        return find_rules(self._shows, supports_tools=self.template.supports_tools)

    @cached_property
    def switches(self) -> Switches:
        """The template's variables for thinking."""
        efforts = ("low", "medium", "high") if self._reasoning and self._reasoning.has_channels else EFFORTS
        return find_switches(self._render_greeting, self.template.variables, efforts=efforts)

    def inputs(self, turns: Items[Turn], tools: Items[Tool], options: ChatOptions) -> ChatInputs:
        """Return the template's inputs. Raises InvalidField if an option does not fit the conversation."""
        if options.continue_final_turn:
            _check_final_turn(turns[-1])
        given, shown = as_system(turns), [tool.for_template() for tool in tools]
        if not self.template.supports_tools:
            given, shown = list(as_plain_text(given, tools)), []
        continued_key = "content" if options.continue_final_turn else ""
        if continued_key and given[-1].reasoning and not given[-1].content:
            given, continued_key = self._with_open_thoughts(given)
        self._check_roles(given)
        arguments = self.switches.arguments(options.effort, options.arguments)
        add_generation_prompt = not options.omit_generation_prompt
        return ChatInputs(self._messages(given), shown, arguments, continued_key, add_generation_prompt)

    def render(self, inputs: ChatInputs, options: ChatOptions) -> str:
        """Return the text of a prompt.

        Raises:
            InvalidField: The template rejects the conversation, or there is no template.
            UnsupportedModel: The template is not valid Jinja.
        """
        rendered = self.template.render(
            inputs.messages,
            inputs.tools,
            arguments=inputs.arguments,
            add_generation_prompt=inputs.add_generation_prompt,
            continued_key=inputs.continued_key,
        )
        if self._reasoning and options.effort == "none" and not (options.continue_final_turn or self.switches.values):
            # The template has no switch and begins thoughts, so the end marker is added here.
            if rendered.rstrip().endswith(self._reasoning.start):
                rendered += f"\n{self._reasoning.end}\n\n"
        return _well_formed(rendered)

    def render_answer(self, answer: str) -> str:
        """Return the text of a conversation that ends with an assistant's `answer`. Raises the errors of `render`."""
        return self.template.render(
            self._messages([Turn("user", "hi"), Turn("assistant", answer)]), add_generation_prompt=False
        )

    def thoughts(self, rendered: str, last: Turn, inputs: ChatInputs, options: ChatOptions) -> ThoughtState:
        """Return the state of the thoughts at the end of a prompt.

        Args:
            rendered: The prompt.
            last: The last turn as the client sent it.
            inputs: The template's inputs.
            options: The options of the prompt.
        """
        if (reasoning := self._reasoning) is None:
            return "none"
        if options.continue_final_turn and (last.content or last.reasoning):
            is_open = not last.content or last.content.rfind(reasoning.start) > last.content.rfind(reasoning.end)
            return "continued" if is_open else "none"
        end = rendered.rstrip()
        if reasoning.has_channels or end.endswith(reasoning.start):
            return "open"
        is_unswitched = options.effort == "none" and not self.switches.values
        if is_unswitched or self.switches.are_off(inputs.arguments) or end.endswith(reasoning.end):
            return "off"
        return "possible"

    def _messages(self, turns: Items[Turn]) -> list[dict[str, Json]]:
        rules = self.rules
        return [message(turn, has_text_arguments=rules.has_text_arguments) for turn in fitted(turns, rules)]

    def _check_roles(self, turns: Items[Turn]) -> None:
        """Raise InvalidField for an unusual role whose turns the template leaves out."""
        unusual = sorted({turn.role for turn in turns} - _USUAL_ROLES)
        for role in unusual[:_MAX_CHECKED_ROLES]:
            try:
                text = self.template.render(self._messages([Turn("user", "QZU"), Turn(role, "QZR")]))
            except (InvalidField, UnsupportedModel):
                continue  # rendering the conversation raises the error
            if "QZR" not in text:
                reason = f"have the role {role!r}, which this model's chat template leaves out"
                raise InvalidField(FieldViolation("chat.turns", reason))

    def _with_open_thoughts(self, turns: list[Turn]) -> tuple[list[Turn], str]:
        """Return turns whose last one is continued within its thoughts, and the key of the text to continue."""
        if "reasoning_content" in str(self.template.source):
            return turns, "reasoning_content"
        if self._reasoning is None:
            raise InvalidField(FieldViolation("chat.continue_final_turn", "needs content: this model has no thoughts"))
        last = turns[-1]
        content = f"{self._reasoning.start}\n{last.reasoning}"
        return [*turns[:-1], replace(last, content=content, reasoning="")], "content"

    def _shows(self, turns: Items[Turn], texts: Items[str], rules: RoleRules) -> bool:
        """Return True if the template renders `turns`, fitted by `rules`, to a text that contains all of `texts`."""
        messages = [message(turn, has_text_arguments=rules.has_text_arguments) for turn in fitted(turns, rules)]
        has_tools = any(turn.tool_calls for turn in turns)
        try:
            text = self.template.render(messages, [_PROBE_TOOL.for_template()] if has_tools else [])
        except (InvalidField, UnsupportedModel):
            return False
        return all(each in text for each in texts)

    def _render_greeting(self, arguments: Mapping[str, Json]) -> str | None:
        """Return a short prompt with these variables, or None if the template rejects them."""
        try:
            return self.template.render([message(Turn("user", "hi"))], arguments=arguments)
        except (InvalidField, UnsupportedModel):
            return None


def _check_final_turn(turn: Turn) -> None:
    """Raise InvalidField unless a turn can be continued."""
    if turn.role != "assistant":
        raise InvalidField(FieldViolation("chat.continue_final_turn", "needs a last turn with the role assistant"))
    if turn.tool_calls:
        raise InvalidField(FieldViolation("chat.continue_final_turn", "needs a last turn without tool calls"))


def _well_formed(text: str) -> str:
    """Return text without lone surrogates, which JSON can contain and no tokenizer can encode."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _texts(value: Json) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, item in value.items():
            if name not in MESSAGE_NAMES:
                yield name
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)


def _mapped(value: Json, change: Callable[[str], str]) -> Json:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {name if name in MESSAGE_NAMES else change(name): _mapped(item, change) for name, item in value.items()}
    return [_mapped(item, change) for item in value] if isinstance(value, list) else value
