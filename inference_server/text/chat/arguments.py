"""Chooses the variables of a chat template: the client's own, and those for the amount of thinking.

Each template has its own name for the switch that controls thinking (enable_thinking, thinking, …), and some accept an
effort. So `find_switches` renders a prompt with each candidate that the template reads. It keeps the switches that have
an effect, and the efforts that the template accepts.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh")

# The template's inputs, the parameters of the function that renders it, and Jinja's own names.
_RESERVED = frozenset(
    ("messages", "tools", "documents", "add_generation_prompt", "continue_final_message", "chat_template")
    + (
        "conversation",
        "conversations",
        "tokenize",
        "sanitize_control_tokens",
        "padding",
        "truncation",
        "max_length",
        "return_tensors",
    )
    + ("return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs", "self", "loop", "caller", "varargs", "kwargs")
    + ("raise_exception", "strftime_now", "range", "dict", "namespace", "cycler", "joiner", "lipsum")
    + ("additional_special_tokens", "extra_special_tokens")
)
# Names of switches, each with its values for off and on. None: leave the variable unset.
_SWITCHES: tuple[tuple[str, Any, Any], ...] = (
    ("enable_thinking", False, True),
    ("thinking", False, True),
    ("enable_reasoning", False, True),
    ("reasoning", False, True),
    ("thinking_mode", "disabled", "enabled"),
    ("thinking_mode", "chat", "thinking"),
    ("thinking_mode", "off", "on"),
    ("thinking_budget", 0, None),
)
_EFFORT_NAMES = ("reasoning_effort", "thinking_effort", "reasoning_strength")
# Returns the prompt with these variables, or None if the template rejects them.
Render = Callable[[Mapping[str, Any]], str | None]


def is_reserved(name: str) -> bool:
    """Return True for a variable that a client must not set: an input, a name of Jinja, or a control token's text."""
    return name in _RESERVED or name.endswith("_token")


def parsed(text: str) -> dict[str, Any]:
    """Return template arguments from their JSON text, which has passed validation."""
    found = json.loads(text) if text else {}
    assert isinstance(found, dict)
    return found


@dataclass(frozen=True, slots=True)
class Switches:
    """The variables for thinking that a template reads.

    Attributes:
        values: The two values that switch thinking off and on, by the variable's name. None: the variable stays unset.
        efforts: The value that the template accepts for each of EFFORTS, by the variable's name.
    """

    values: Mapping[str, tuple[Any, Any]]
    efforts: Mapping[str, Mapping[str, str]]

    def arguments(self, effort: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the variables for a request.

        Args:
            effort: One of EFFORTS, or empty for the template's default.
            given: The client's own variables, which take precedence.
        """
        if not effort:
            return dict(given)
        is_off = effort == "none"
        found = {name: off if is_off else on for name, (off, on) in self.values.items()}
        for name, accepted in self.efforts.items():
            if not (is_off and self.values) and effort in accepted:
                found[name] = accepted[effort]
        return {name: value for name, value in found.items() if value is not None} | dict(given)

    def are_off(self, arguments: Mapping[str, Any]) -> bool:
        """Return True if these variables switch thinking off."""
        # Templates compare with "is false", which is not true for 0.
        return any(
            type(value := arguments.get(name)) is type(off) and value == off for name, (off, _) in self.values.items()
        )


def find_switches(render: Render, variables: frozenset[str], *, efforts: tuple[str, ...] = EFFORTS) -> Switches:
    """Return the switches that have an effect on a template, and the efforts that it accepts.

    Args:
        render: Renders a short conversation.
        variables: Variables that the template reads.
        efforts: The efforts that the model may support, in ascending order.
    """
    values: dict[str, tuple[Any, Any]] = {}
    for name, off, on in _SWITCHES:
        if name in variables and name not in values:
            with_off, with_on = render({name: off}), render({} if on is None else {name: on})
            if with_off is not None and with_on is not None and with_off != with_on:
                values[name] = off, on
    accepted: dict[str, Mapping[str, str]] = {}
    for name in _EFFORT_NAMES:
        if name in variables:
            known = [effort for effort in efforts if render({name: effort}) is not None]
            if known:
                accepted[name] = {effort: _nearest(effort, known) for effort in EFFORTS}
    return Switches(values, accepted)


def _nearest(effort: str, known: list[str]) -> str:
    """Return the nearest known effort; of two equally near ones, the smaller.

    "none" replaces another effort only if no other effort is known.
    """
    thinking = [one for one in known if one != "none"] or known
    place = EFFORTS.index(effort)
    among = known if effort in known else thinking
    return min(among, key=lambda one: (abs(EFFORTS.index(one) - place), EFFORTS.index(one)))
