"""Converts prompts to token ids: applies the chat template, and adds control tokens and one beginning-of-sequence token.

Text of a client never becomes a control token. Before the template is rendered, private characters replace two kinds of
strings in the client's text. The first looks like a control token. The second is the beginning or end of a text, and could
form a control token together with the text next to it. After rendering, the text between the template's control tokens is
tokenised as plain text, with the strings restored.

Thread-safe: the tokenizers' settings never change after construction.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Sequence as Items
from dataclasses import dataclass
from functools import partial
from typing import Any

from jinja2.exceptions import TemplateError, TemplateSyntaxError
from tokenizers import AddedToken, Tokenizer

from inference_server.errors import FieldViolation, InvalidField, UnsupportedModel
from inference_server.generation import ToolCall
from inference_server.text import tool_formats
from inference_server.text.token_decoder import TokenDecoder
from inference_server.text.tokenizer_copy import copy_tokenizer
from inference_server.text.tool_formats import Tool

_PRIVATE_USE = (range(0xE000, 0xF900), range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))
# Two Unicode noncharacters, which never occur in text.
_MARK = "\U0010fffe\U0010ffff"
# Keys and values of a message that do not come from a client.
_NAMES = frozenset(
    ("role", "content", "tool_calls", "tool_call_id", "id", "type", "function", "name", "arguments")
    + ("description", "parameters")
)

# Messages and tools as chat templates expect them: JSON.
_Json = Any


@dataclass(frozen=True, slots=True)
class Turn:
    """A message of a conversation. `tool_calls` belongs to an assistant, `tool_call_id` and `name` to a tool."""

    role: str
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    name: str = ""


class PromptEncoder:
    """Encoder of one model's prompts."""

    def __init__(self, tokenizer: Any, *, chat_template: str | None = None, raw_control_tokens: bool = False) -> None:
        """Prepare three variants of a tokenizer: with control tokens, without, and for text in the middle of a prompt.

        Args:
            tokenizer: The transformers tokenizer.
            chat_template: Jinja text that replaces the tokenizer's own template.
            raw_control_tokens: Recognise control tokens in raw text.

        Raises:
            UnsupportedModel: The tokenizer has no `tokenizers` back end.
        """
        if getattr(tokenizer, "backend_tokenizer", None) is None:
            raise UnsupportedModel("its tokenizer has no fast form (a tokenizer.json), which this server needs")
        self._tokenizer = tokenizer
        self._chat_template = chat_template or tokenizer.chat_template
        self._supports_tools = tool_formats.supports_tools(self._chat_template)
        self._raw_control_tokens = raw_control_tokens
        self._marked: Tokenizer = tokenizer.backend_tokenizer  # control tokens in text are recognised
        # A tokenizer's file may enable both, but a prompt must be neither truncated nor padded.
        self._marked.no_truncation()
        self._marked.no_padding()
        self._plain = copy_tokenizer(self._marked)  # control tokens in text are plain text
        self._plain.encode_special_tokens = True
        # A copy with an extra token. Text after that token is not at the beginning, where SentencePiece adds a space.
        self._inner = copy_tokenizer(self._marked)
        self._inner.encode_special_tokens = True
        self._inner.add_tokens([AddedToken(_MARK, normalized=False)])
        self._control = {
            token.content: (token_id, token)
            for token_id, token in tokenizer.added_tokens_decoder.items()
            if token.special and token.content
        }
        self._control_pattern = _any_of(self._control)
        self._look_alike_pattern = _look_alikes(self._control)
        self.decoder = TokenDecoder(self._marked, {text: token_id for text, (token_id, _) in self._control.items()})
        # Normalised tokens also match variants of their text, which these patterns do not find.
        self._may_normalise = any(token.normalized for _, token in self._control.values())

    @property
    def template(self) -> object:
        """The chat template: Jinja text, several by name, or None."""
        return self._chat_template

    @property
    def has_chat_template(self) -> bool:
        """True if the model or its catalog entry has a chat template."""
        return self._chat_template is not None

    def encode_text(self, text: str) -> list[int]:
        """Return the token ids of raw text, with one beginning-of-sequence token if the tokenizer has one."""
        if not self._raw_control_tokens:
            return _ids(self._plain, text, add_special_tokens=True)
        bos = self._tokenizer.bos_token
        return _ids(self._marked, text, add_special_tokens=not (bos and text.startswith(bos)))

    def encode_chat(self, turns: Items[Turn], tools: Items[Tool] = ()) -> list[int]:
        """Return the token ids of a conversation and of the beginning of the assistant's turn.

        Raises:
            InvalidField: The chat template rejects the conversation, or there is no template.
            UnsupportedModel: The chat template is not valid Jinja.
        """
        if self._supports_tools:
            messages, shown = [_message(turn) for turn in turns], [tool.for_template() for tool in tools]
        else:
            messages, shown = [_message(turn) for turn in _as_plain_text(turns, tools)], []
        texts = [*_texts(messages), *_texts(shown)]
        if not self._may_normalise and not any(self._look_alike_pattern.search(text) for text in texts):
            return _ids(self._marked, self._render(messages, shown), add_special_tokens=False)
        disguises = self._disguises(texts)
        disguise = partial(self._disguise, disguises=disguises)
        rendered = self._render(_mapped(messages, disguise), _mapped(shown, disguise))
        return self._encode_disguised(rendered, {private: text for text, private in disguises.items()})

    def end_of_turn_ids(self) -> set[int]:
        """Return the control token that the template puts after an assistant's turn, if there is one.

        Raises:
            UnsupportedModel: The chat template is not valid Jinja.
        """
        if not self.has_chat_template:
            return set()
        answer = chr(_PRIVATE_USE[0][0])
        try:
            turns = [Turn("user", "hi"), Turn("assistant", answer)]
            text = self._render([_message(turn) for turn in turns], [], add_generation_prompt=False)
        except InvalidField:
            return set()
        match = self._control_pattern.search(text, text.rfind(answer) + 1) if answer in text else None
        return {self._control[match.group()][0]} if match else set()

    def _render(self, messages: _Json, tools: _Json, *, add_generation_prompt: bool = True) -> str:
        if self._chat_template is None:
            raise InvalidField(
                FieldViolation("chat", "is not possible: this model has no chat template; send raw text")
            )
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    messages,
                    tools=tools or None,
                    chat_template=self._chat_template,
                    tokenize=False,
                    add_generation_prompt=add_generation_prompt,
                )
            )
        except TemplateSyntaxError as error:
            raise UnsupportedModel(f"its chat template has an error in line {error.lineno}: {error.message}") from None
        except TemplateError as error:
            raise InvalidField(
                FieldViolation("chat.turns", f"do not fit this model's chat template: {error}")
            ) from None
        except Exception as error:  # a template is a program, which may raise any exception
            raise InvalidField(FieldViolation("chat.turns", "do not fit this model's chat template")) from error

    def _disguises(self, texts: Items[str]) -> dict[str, str]:
        """Map each string that looks like a control token, or a part of one, to a private character that no text contains."""
        look_alikes = sorted({match.group() for text in texts for match in self._look_alike_pattern.finditer(text)})
        taken = set().union(*texts)
        free = (character for codes in _PRIVATE_USE for character in map(chr, codes) if character not in taken)
        disguises = dict(zip(look_alikes, free, strict=False))
        if len(disguises) < len(look_alikes):
            raise InvalidField(FieldViolation("chat.turns", "use up every private character of Unicode"))
        return disguises

    def _disguise(self, text: str, disguises: dict[str, str]) -> str:
        return self._look_alike_pattern.sub(lambda match: disguises[match.group()], text)

    def _encode_disguised(self, rendered: str, originals: dict[str, str]) -> list[int]:
        ids: list[int] = []
        back = str.maketrans(originals)
        start = 0
        strip_left = False
        for match in self._control_pattern.finditer(rendered):
            token_id, token = self._control[match.group()]
            segment = rendered[start : match.start()]
            segment = segment.rstrip() if token.lstrip else segment
            segment = segment.lstrip() if strip_left else segment
            ids += self._encode_segment(segment.translate(back), is_first=start == 0)
            ids.append(token_id)
            start, strip_left = match.end(), token.rstrip
        segment = rendered[start:].lstrip() if strip_left else rendered[start:]
        return ids + self._encode_segment(segment.translate(back), is_first=start == 0)

    def _encode_segment(self, segment: str, *, is_first: bool) -> list[int]:
        if not segment:
            return []
        if is_first or _MARK in segment:
            return _ids(self._plain, segment, add_special_tokens=False)
        return _ids(self._inner, _MARK + segment, add_special_tokens=False)[1:]


def _message(turn: Turn) -> dict[str, _Json]:
    message: dict[str, _Json] = {"role": turn.role, "content": turn.content}
    if turn.tool_calls:
        message["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": json.loads(call.arguments)},
            }
            for call in turn.tool_calls
        ]
    if turn.tool_call_id:
        message["tool_call_id"] = turn.tool_call_id
    if turn.name:
        message["name"] = turn.name
    return message


def _as_plain_text(turns: Items[Turn], tools: Items[Tool]) -> Iterator[Turn]:
    """Yield the same conversation with tools, calls and results as text, for a template without tool support."""
    rest = list(turns)
    if tools:
        system = rest.pop(0).content + "\n\n" if rest and rest[0].role == "system" else ""
        yield Turn("system", system + tool_formats.system_text(tools))
    for turn in rest:
        if turn.role == "tool":
            yield Turn("user", tool_formats.result_text(turn.content))
        elif turn.tool_calls:
            yield Turn(turn.role, "\n".join(filter(None, (turn.content, tool_formats.call_text(turn.tool_calls)))))
        else:
            yield turn


def _texts(value: _Json) -> Iterator[str]:
    """Yield every string that comes from the client."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, item in value.items():
            if name not in _NAMES:
                yield name
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)


def _mapped(value: _Json, change: Callable[[str], str]) -> _Json:
    """Return a copy with `change` applied to every string that comes from the client."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {name if name in _NAMES else change(name): _mapped(item, change) for name, item in value.items()}
    return [_mapped(item, change) for item in value] if isinstance(value, list) else value


def _ids(tokenizer: Tokenizer, text: str, *, add_special_tokens: bool) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
    return ids


def _any_of(strings: Iterable[str]) -> re.Pattern[str]:
    """Return a pattern that matches as a tokenizer does: the leftmost and longest string. Without strings it never matches."""
    longest_first = sorted(strings, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def _look_alikes(controls: Iterable[str]) -> re.Pattern[str]:
    """Return a pattern for control tokens, their beginnings at the end of a text, and their ends at its beginning."""
    controls = list(controls)
    beginnings = {control[:length] for control in controls for length in range(1, len(control))}
    ends = {control[length:] for control in controls for length in range(1, len(control))}
    whole, beginning, end = (_any_of(strings).pattern for strings in (controls, beginnings, ends))
    return re.compile(rf"{whole}|\A(?:{end})|(?:{beginning})\Z")
