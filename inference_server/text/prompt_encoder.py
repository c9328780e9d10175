"""Prompts to token ids, and ids to text: chat template, control tokens, the one beginning-of-sequence token.

A caller's text never becomes a control token. The template's own control tokens are told apart before the caller's text
is put in: in that text, each string that looks like one, and each end or beginning that could become one beside other
text, is replaced by a private character while the template is rendered; what lies between the template's control tokens
is then tokenised as plain text, with the strings put back.

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
from inference_server.text import tool_formats as tool_forms
from inference_server.text.token_bytes import TokenBytes
from inference_server.text.tool_formats import Tool

_PRIVATE_USE = (range(0xE000, 0xF900), range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))
# Two characters that Unicode reserves for no text at all.
_MARK = "\U0010fffe\U0010ffff"
# What the form of a message consists of; no caller wrote these names.
_NAMES = frozenset(
    ("role", "content", "tool_calls", "tool_call_id", "id", "type", "function", "name", "arguments")
    + ("description", "parameters")
)

# Messages and tools in the form that chat templates take: JSON.
_Json = Any


@dataclass(frozen=True, slots=True)
class Turn:
    """One message. `tool_calls`: of an assistant's turn; the last two are of a tool's turn, and may be empty."""

    role: str
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    name: str = ""


class PromptEncoder:
    def __init__(self, tokenizer: Any, *, chat_template: str | None = None, raw_control_tokens: bool = False) -> None:
        """`tokenizer`: of transformers. `chat_template`: Jinja text that replaces the tokenizer's own.

        Raises UnsupportedModel for a tokenizer that has no `tokenizers` back end (character offsets, plain splitting).
        """
        if getattr(tokenizer, "backend_tokenizer", None) is None:
            raise UnsupportedModel("its tokenizer exists in slow form only")
        self._tokenizer = tokenizer
        self._chat_template = chat_template or tokenizer.chat_template
        self._knows_tools = tool_forms.knows_tools(self._chat_template)
        self._raw_control_tokens = raw_control_tokens
        self._marked: Tokenizer = tokenizer.backend_tokenizer  # control tokens in text are recognised
        # A tokenizer's file may order both, and a prompt must neither be cut nor filled up.
        self._marked.no_truncation()
        self._marked.no_padding()
        self._plain = Tokenizer.from_str(self._marked.to_str())  # they are text like any other
        self._plain.encode_special_tokens = True
        # A copy that takes a mark for a token of its own: what follows it is not the beginning of the text, where
        # SentencePiece puts a space.
        self._inner = Tokenizer.from_str(self._marked.to_str())
        self._inner.encode_special_tokens = True
        self._inner.add_tokens([AddedToken(_MARK, normalized=False)])
        self.token_bytes = TokenBytes(self._marked)
        self._control = {
            token.content: (token_id, token)
            for token_id, token in tokenizer.added_tokens_decoder.items()
            if token.special and token.content
        }
        self._control_pattern = _any_of(self._control)
        self._look_alike_pattern = _look_alikes(self._control)
        # Such tokens are found in normalised text, where more looks like them than we can search for.
        self._may_normalise = any(token.normalized for _, token in self._control.values())

    @property
    def template(self) -> object:
        """The chat template: Jinja text, several by name, or None."""
        return self._chat_template

    @property
    def has_chat_template(self) -> bool:
        return self._chat_template is not None

    def encode_text(self, text: str) -> list[int]:
        """Raw text, with one beginning-of-sequence token if the tokenizer has one."""
        if not self._raw_control_tokens:
            return _ids(self._plain, text, add_special_tokens=True)
        bos = self._tokenizer.bos_token
        return _ids(self._marked, text, add_special_tokens=not (bos and text.startswith(bos)))

    def encode_chat(self, turns: Items[Turn], tools: Items[Tool] = ()) -> list[int]:
        """A conversation and the opening of the assistant's turn. Raises InvalidField if the template refuses it."""
        if self._knows_tools:
            messages, shown = [_message(turn) for turn in turns], [tool.for_template() for tool in tools]
        else:
            messages, shown = [_message(turn) for turn in _in_words(turns, tools)], []
        texts = [*_texts(messages), *_texts(shown)]
        if not self._may_normalise and not any(self._look_alike_pattern.search(text) for text in texts):
            return _ids(self._marked, self._render(messages, shown), add_special_tokens=False)
        disguises = self._disguises(texts)
        disguise = partial(self._disguise, disguises=disguises)
        rendered = self._render(_mapped(messages, disguise), _mapped(shown, disguise))
        return self._encode_disguised(rendered, {private: text for text, private in disguises.items()})

    def decode(self, token_ids: list[int]) -> str:
        """Text of token ids; control tokens have none."""
        return str(self._marked.decode(token_ids, skip_special_tokens=True))

    def decoder(self, shown: Iterable[str]) -> Callable[[list[int]], str]:
        """Like `decode`, but the control tokens in `shown` are text."""
        texts = {self._control[token][0]: token for token in shown if token in self._control}
        return partial(self._decode_with, texts) if texts else self.decode

    def _decode_with(self, texts: dict[int, str], token_ids: list[int]) -> str:
        pieces, start = [], 0
        for place, token_id in enumerate(token_ids):
            if token_id in texts:
                pieces += [self.decode(token_ids[start:place]), texts[token_id]]
                start = place + 1
        return "".join([*pieces, self.decode(token_ids[start:])])

    def end_of_turn_ids(self) -> set[int]:
        """The control token that the template puts after an assistant's turn, if there is one.

        Raises UnsupportedModel if the template cannot even be read.
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
        except Exception as error:  # a template is a program, and these turns were too much for it
            raise InvalidField(FieldViolation("chat.turns", "do not fit this model's chat template")) from error

    def _disguises(self, texts: Items[str]) -> dict[str, str]:
        """A private character, one that no text holds, for each string that looks like a control token or a part of one."""
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


def _in_words(turns: Items[Turn], tools: Items[Tool]) -> Iterator[Turn]:
    """The same conversation for a template that knows no tools: everything about them is text."""
    rest = list(turns)
    if tools:
        system = rest.pop(0).content + "\n\n" if rest and rest[0].role == "system" else ""
        yield Turn("system", system + tool_forms.system_text(tools))
    for turn in rest:
        if turn.role == "tool":
            yield Turn("user", tool_forms.answer_text(turn.content))
        elif turn.tool_calls:
            yield Turn(turn.role, "\n".join(filter(None, (turn.content, tool_forms.call_text(turn.tool_calls)))))
        else:
            yield turn


def _texts(value: _Json) -> Iterator[str]:
    """Every string that a caller has written."""
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
    """The same with every string that a caller has written changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {name if name in _NAMES else change(name): _mapped(item, change) for name, item in value.items()}
    return [_mapped(item, change) for item in value] if isinstance(value, list) else value


def _ids(tokenizer: Tokenizer, text: str, *, add_special_tokens: bool) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
    return ids


def _any_of(strings: Iterable[str]) -> re.Pattern[str]:
    """Matches as a tokenizer does: leftmost, and of several the longest. Matches nothing if there are none."""
    longest_first = sorted(strings, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def _look_alikes(controls: Iterable[str]) -> re.Pattern[str]:
    """Control tokens, beginnings of one where a text ends, and ends of one where a text begins."""
    controls = list(controls)
    beginnings = {control[:length] for control in controls for length in range(1, len(control))}
    ends = {control[length:] for control in controls for length in range(1, len(control))}
    whole, beginning, end = (_any_of(strings).pattern for strings in (controls, beginnings, ends))
    return re.compile(rf"{whole}|\A(?:{end})|(?:{beginning})\Z")
