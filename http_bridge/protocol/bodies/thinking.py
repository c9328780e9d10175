"""Converts the reasoning options of several APIs to one reasoning effort, and to variables for the chat template.

This module calls an effort an amount of thinking, and an option of a body a switch. The options, and the APIs that have
them:

reasoning_effort                          OpenAI
reasoning: {effort, enabled, exclude}     OpenAI's responses, OpenRouter
enable_thinking                           Qwen's API
thinking: {type} or a boolean             Anthropic, DeepSeek, GLM, Kimi
chat_template_kwargs                      vLLM, SGLang, Workers AI
include_reasoning, reasoning_format       OpenRouter, Groq
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any, get_args

from http_bridge.protocol.run_body import Effort
from http_bridge.protocol.validation.documents import bad_field

Document = Mapping[str, Any]

_EFFORTS: Mapping[str, Effort] = {
    **{effort: effort for effort in get_args(Effort)},
    "auto": "",
    "default": "",
    "off": "none",
    "max": "xhigh",
}
_LISTED = ", ".join(effort for effort in get_args(Effort) if effort)
# The amounts for a switch that can only be on or off.
_ON: Effort = "medium"
_OFF: Effort = "none"
_NO_WISH: Effort = ""
_ARGUMENTS = "/chat_template_kwargs"
_THINKING_TYPES: Mapping[str, Effort] = {"enabled": _ON, "disabled": _OFF, "adaptive": "", "auto": ""}
_BUDGETS = ("/reasoning/max_tokens", "/thinking/budget_tokens", "/thinking_budget", "/thinking_token_budget")


def thinking_fields(document: Document) -> dict[str, Any]:
    """Return RunBody's fields about thinking.

    Raises:
        ApiError: 400/5006 for an unknown amount, for two switches that contradict each other, and for a budget in tokens.
    """
    for path in _BUDGETS:
        if _at(document, path) is not None:
            raise bad_field(path, "is not supported: limit thoughts and reply together with max_tokens")
    effort = _agreed(document)
    arguments = document.get("chat_template_kwargs")
    return {
        "reasoning_effort": effort,
        "template_arguments": json.dumps(arguments, ensure_ascii=False) if arguments else "",
        "hides_reasoning": _is_hidden(document),
    }


def thinking_path(document: Document) -> str | None:
    """Return the path of a field about thinking, which needs a chat template; None if the body has none."""
    wishes = (path for path, _, _ in _wishes(document))
    return _ARGUMENTS if document.get("chat_template_kwargs") else next(wishes, None)


def effort(value: Any, path: str) -> Effort:
    """Return the amount of thinking for a body's value.

    Raises:
        ApiError: 400/5006 for a value that is not an amount.
    """
    amount = _EFFORTS.get(value) if isinstance(value, str) else None
    if amount is None:
        raise bad_field(path, f"is one of {_LISTED}")
    return amount


def _agreed(document: Document) -> Effort:
    """Return the amount that all switches of the body agree on.

    A switch that can only be on or off agrees, if it is on, with every amount except none.
    """
    path, agreed, is_exact = "", _NO_WISH, False
    for other, amount, is_other_exact in _wishes(document):
        if not path:
            path, agreed, is_exact = other, amount, is_other_exact
        elif (amount == _OFF) != (agreed == _OFF) or (is_exact and is_other_exact and amount != agreed):
            raise bad_field(other, f"contradicts '{path}': send one of them")
        elif is_other_exact and not is_exact and not other.startswith(_ARGUMENTS):
            path, agreed, is_exact = other, amount, True
    # The template reads its variables itself, so no amount is derived from them.
    return _NO_WISH if path.startswith(_ARGUMENTS) else agreed


def _wishes(document: Document) -> Iterator[tuple[str, Effort, bool]]:
    """Yield path and amount of every switch in the body, and whether the amount is exact rather than on or off."""
    yield from _efforts(document, "/reasoning_effort", "/reasoning/effort", "/reasoning")
    yield from _switches(document, "/reasoning/enabled", "/reasoning", "/enable_thinking", "/thinking")
    if isinstance(kind := _at(document, "/thinking/type"), str):
        amount = _THINKING_TYPES.get(kind)
        if amount is None:
            raise bad_field("/thinking/type", f"is one of {', '.join(_THINKING_TYPES)}")
        if amount:
            yield "/thinking", amount, False
    yield from _efforts(document, f"{_ARGUMENTS}/reasoning_effort")
    yield from _switches(document, f"{_ARGUMENTS}/enable_thinking", f"{_ARGUMENTS}/thinking")


def _efforts(document: Document, *paths: str) -> Iterator[tuple[str, Effort, bool]]:
    for path in paths:
        value = _at(document, path)
        if isinstance(value, str) and (amount := effort(value, path)):
            yield path, amount, True


def _switches(document: Document, *paths: str) -> Iterator[tuple[str, Effort, bool]]:
    for path in paths:
        value = _at(document, path)
        if isinstance(value, bool):
            yield path, _ON if value else _OFF, False


def _is_hidden(document: Document) -> bool:
    style = document.get("reasoning_format")
    if style == "raw":
        raise bad_field("/reasoning_format", "is parsed or hidden: thoughts are never part of the content")
    excluded = _at(document, "/reasoning/exclude") is True
    return excluded or document.get("include_reasoning") is False or style == "hidden"


def _at(document: Document, path: str) -> Any:
    """Return the value at a path of one or two names; None if there is none."""
    value: Any = document
    for name in path[1:].split("/"):
        value = value.get(name) if isinstance(value, dict) else None
    return value
