"""Converts prompts to token ids: applies the chat template, and adds the control tokens.

Text of a client never becomes a control token, except in raw prompts if `raw_control_tokens` is set. Before the
template is rendered, private-use characters replace two kinds of strings in the client's text. The first looks like a
control token. The second is the beginning or end of a text, and could form a control token together with the text next
to it. After rendering, the text between the template's control tokens is tokenised as plain text, with the strings
restored.

Thread-safe: the tokenizers' settings never change after construction.
"""

import re
from collections.abc import Iterable
from collections.abc import Sequence as Items
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from tokenizers import AddedToken, Tokenizer

from inference_server.errors import FieldViolation, InvalidField, UnsupportedModel
from inference_server.text.chat.prompts import ChatOptions, ChatPrompts
from inference_server.text.chat.template import ChatTemplate
from inference_server.text.chat.turns import Turn
from inference_server.text.reasoning.formats import ReasoningFormat, ThoughtState, detect_reasoning_format
from inference_server.text.token_decoder import TokenDecoder
from inference_server.text.tokenizer_copy import copy_tokenizer
from inference_server.text.tool_formats import Tool

_PRIVATE_USE = (range(0xE000, 0xF900), range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))
# With a longer control token, the pattern is a list of alternatives instead of a tree: Python limits nesting.
_LONGEST_IN_TREE = 100
# Two Unicode noncharacters, which ordinary text does not contain. `_encode_segment` handles text that contains them.
_MARK = "\U0010fffe\U0010ffff"


@dataclass(frozen=True, slots=True)
class Prompt:
    """Token ids of a prompt, and the state of the thoughts at its end."""

    token_ids: list[int]
    thoughts: ThoughtState


class PromptEncoder:
    """Converts one model's prompts, raw text or conversations, to token ids."""

    def __init__(
        self,
        tokenizer: Any,
        *,
        chat_template: str | None = None,
        raw_control_tokens: bool = False,
        reasoning: ReasoningFormat | Literal["detect"] | None = "detect",
    ) -> None:
        """Prepare three variants of a tokenizer: with control tokens, without, and for text in the middle of a prompt.

        Args:
            tokenizer: The transformers tokenizer.
            chat_template: Jinja text that replaces the tokenizer's own template.
            raw_control_tokens: Recognise control tokens in raw text.
            reasoning: Format of the model's thoughts; "detect": the one in the chat template; None: no thoughts.

        Raises:
            UnsupportedModel: The tokenizer has no `tokenizers` back end.
        """
        if getattr(tokenizer, "backend_tokenizer", None) is None:
            raise UnsupportedModel("its tokenizer has no fast form (a tokenizer.json), which this server needs")
        self._tokenizer = tokenizer
        template = ChatTemplate(tokenizer, chat_template or tokenizer.chat_template)
        self.reasoning = detect_reasoning_format(template.source) if reasoning == "detect" else reasoning
        self.chats = ChatPrompts(template, self.reasoning)
        self._raw_control_tokens = raw_control_tokens
        self._marked: Tokenizer = tokenizer.backend_tokenizer  # control tokens in text are recognised
        # A tokenizer's file may enable truncation and padding, but a prompt must be neither truncated nor padded.
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
        """The chat template: Jinja text, a dictionary of several templates by name, or None."""
        return self.chats.template.source

    @property
    def has_chat_template(self) -> bool:
        """True if the model or its catalog entry has a chat template."""
        return self.chats.template.source is not None

    def encode_text(self, text: str) -> list[int]:
        """Return the token ids of raw text, with one beginning-of-sequence token if the tokenizer has one."""
        if not self._raw_control_tokens:
            return _ids(self._plain, text, add_special_tokens=True)
        bos = self._tokenizer.bos_token
        return _ids(self._marked, text, add_special_tokens=not (bos and text.startswith(bos)))

    def encode_chat(self, turns: Items[Turn], tools: Items[Tool] = ()) -> list[int]:
        """Return the token ids of a conversation with the default options; see `encode_conversation`."""
        return self.encode_conversation(turns, tools, ChatOptions()).token_ids

    def encode_conversation(self, turns: Items[Turn], tools: Items[Tool], options: ChatOptions) -> Prompt:
        """Return the prompt of a conversation. By default it ends with the beginning of the assistant's turn.

        Raises:
            InvalidField: The chat template rejects the conversation or an option, or there is no template.
            UnsupportedModel: The chat template is not valid Jinja.
        """
        inputs = self.chats.inputs(turns, tools, options)
        texts = list(inputs.texts())
        if not self._may_normalise and not any(self._look_alike_pattern.search(text) for text in texts):
            rendered = self.chats.render(inputs, options)
            token_ids = _ids(self._marked, rendered, add_special_tokens=False)
        else:
            disguises = self._disguises(texts)
            rendered = self.chats.render(inputs.mapped(partial(self._disguise, disguises=disguises)), options)
            token_ids = self._encode_disguised(rendered, {private: text for text, private in disguises.items()})
        return Prompt(token_ids, self.chats.thoughts(rendered, turns[-1], inputs, options))

    def end_of_turn_ids(self) -> set[int]:
        """Return a set with the id of the control token that the template puts after an assistant's turn.

        The set is empty if there is no such token.

        Raises:
            UnsupportedModel: The chat template is not valid Jinja.
        """
        if not self.has_chat_template:
            return set()
        answer = chr(_PRIVATE_USE[0][0])
        try:
            text = self.chats.render_answer(answer)
        except InvalidField:
            return set()
        match = self._control_pattern.search(text, text.rfind(answer) + 1) if answer in text else None
        return {self._control[match.group()][0]} if match else set()

    def _disguises(self, texts: Items[str]) -> dict[str, str]:
        """Map each string that looks like (a part of) a control token to a private-use character that no text has.

        Raises:
            InvalidField: The texts contain too many private-use characters.
        """
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


def _ids(tokenizer: Tokenizer, text: str, *, add_special_tokens: bool) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
    return ids


def _any_of(strings: Iterable[str]) -> re.Pattern[str]:
    """Return a pattern that finds the leftmost longest string, as a tokenizer does. Without strings it matches nothing."""
    # Tokenizers have up to a thousand control tokens with equal beginnings. In a list of alternatives, every one of
    # them would be compared at every position.
    strings = list(strings)
    if max(map(len, strings), default=0) > _LONGEST_IN_TREE:
        return re.compile("|".join(map(re.escape, sorted(strings, key=len, reverse=True))))
    tree: dict[str, Any] = {}
    for string in strings:
        node = tree
        for character in string:
            node = node.setdefault(character, {})
        node[""] = {}
    return re.compile(_tree_pattern(tree) or r"(?!)")


def _tree_pattern(node: dict[str, Any]) -> str:
    branches = [re.escape(character) + _tree_pattern(child) for character, child in node.items() if character]
    if "" not in node and len(branches) == 1:
        return branches[0]
    return f"(?:{'|'.join(branches)})" + ("?" if "" in node else "") if branches else ""


def _look_alikes(controls: Iterable[str]) -> re.Pattern[str]:
    """Return a pattern for control tokens, their beginnings at a text's end, and their ends at a text's beginning."""
    controls = list(controls)
    beginnings = {control[:length] for control in controls for length in range(1, len(control))}
    ends = {control[length:] for control in controls for length in range(1, len(control))}
    whole, beginning, end = (_any_of(strings).pattern for strings in (controls, beginnings, ends))
    return re.compile(rf"(?:{whole})|\A(?:{end})|(?:{beginning})\Z")
