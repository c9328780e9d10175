"""Merges turns and changes their roles for chat templates that would reject them or leave out their text.

A template reveals its rules only by raising an exception or by leaving out text. So `find_rules` renders short
conversations, once for each model, and keeps the changes that help. For a template that accepts every
conversation, no turn is changed.
"""

from collections.abc import Callable, Iterable
from collections.abc import Sequence as Items
from dataclasses import dataclass, replace
from itertools import groupby

from inference_server.generation import ToolCall
from inference_server.text.chat.call_ids import with_short_ids
from inference_server.text.chat.turns import Turn, merged


@dataclass(frozen=True, slots=True)
class RoleRules:
    """Changes that a chat template needs. Each attribute is True if its change is made.

    Attributes:
        has_no_system: System text at the beginning is put before the text of the next user turn. Later system turns
            become user turns.
        has_one_system: System turns at the beginning are merged.
        needs_user: System turns become user turns if the conversation has no other turns.
        has_early_system: A later system turn becomes a user turn.
        merges_users: User turns in a row are merged.
        merges_assistants: Assistant turns in a row are merged, unless one of them has tool calls.
        begins_with_user: An empty user turn is inserted before an assistant's or a tool's turn at the beginning.
        answers_tools: Empty turns are inserted so that user turns alternate with assistant turns that have no calls.
        has_short_ids: Ids of tool calls have exactly 9 letters and digits.
        has_text_arguments: Arguments of tool calls are JSON text, not objects.
    """

    has_no_system: bool = False
    has_one_system: bool = False
    needs_user: bool = False
    has_early_system: bool = False
    merges_users: bool = False
    merges_assistants: bool = False
    begins_with_user: bool = False
    answers_tools: bool = False
    has_short_ids: bool = False
    has_text_arguments: bool = False


_CALLS = (ToolCall("call_abc123def456", "probe", '{"QZK": "QZV"}'),)
_S, _T, _U, _V = Turn("system", "QZS"), Turn("system", "QZT"), Turn("user", "QZU"), Turn("user", "QZW")
_A, _B = Turn("assistant", "QZA"), Turn("assistant", "QZB")
_CALL, _RESULT = Turn("assistant", "", _CALLS), Turn("tool", "QZR", tool_call_id="call_abc123def456", name="probe")

# Each rule has a conversation and the texts that its prompt must contain. A rule is kept if the texts appear only with
# the rule. Later conversations are rendered with the rules found before.
_PROBES: tuple[tuple[str, tuple[Turn, ...], tuple[str, ...]], ...] = (
    ("merges_users", (_U, _V), ("QZU", "QZW")),
    ("has_no_system", (_S, _U, _A, _V), ("QZS", "QZU", "QZA", "QZW")),
    ("has_one_system", (_S, _T, _U), ("QZS", "QZT", "QZU")),
    ("needs_user", (_S,), ("QZS",)),
    ("has_early_system", (_S, _U, _A, _T, _V), ("QZS", "QZU", "QZA", "QZT", "QZW")),
    ("merges_assistants", (_U, _A, _B, _V), ("QZU", "QZA", "QZB", "QZW")),
    ("begins_with_user", (_A, _U), ("QZA", "QZU")),
)
_TOOL_PROBES: tuple[tuple[str, tuple[Turn, ...], tuple[str, ...]], ...] = (
    ("has_text_arguments", (_U, _CALL, _RESULT), ("QZU", "QZV", "QZR")),
    ("has_short_ids", (_U, _CALL, _RESULT), ("QZU", "QZV", "QZR")),
    ("answers_tools", (_U, _CALL, _RESULT, _V), ("QZU", "QZV", "QZR", "QZW")),
)


def find_rules(shows: Callable[[Items[Turn], Items[str], RoleRules], bool], *, supports_tools: bool) -> RoleRules:
    """Return the rules that a chat template needs.

    Args:
        shows: Function of turns, texts and rules. It renders the turns by the rules, and returns True if the result
            contains all of the texts.
        supports_tools: True if the template describes tools.
    """
    rules = RoleRules()
    if not shows((_U,), ("QZU",), rules):
        return rules  # an unusual template, whose rules this module cannot find
    probes = _PROBES + _TOOL_PROBES if supports_tools else _PROBES
    for name, turns, texts in probes:
        if shows(turns, texts, rules):
            continue
        needed = replace(rules, **{name: True})
        if shows(turns, texts, needed):
            rules = needed
    if supports_tools and not shows((_U, _CALL, _RESULT), ("QZU", "QZV", "QZR"), rules):
        both = replace(rules, has_text_arguments=True, has_short_ids=True)
        rules = both if shows((_U, _CALL, _RESULT), ("QZU", "QZV", "QZR"), both) else rules
    return rules


def as_system(turns: Iterable[Turn]) -> list[Turn]:
    """Return the turns with the role "system" in place of "developer".

    If there is a developer turn among the system turns at the beginning, all of these are merged.
    """
    given = list(turns)
    count = next((i for i, turn in enumerate(given) if turn.role not in ("system", "developer")), len(given))
    first = [replace(turn, role="system") for turn in given[:count]]
    if any(turn.role == "developer" for turn in given[:count]):
        first = [merged(first)]
    return first + [replace(turn, role="system") if turn.role == "developer" else turn for turn in given[count:]]


def fitted(turns: Items[Turn], rules: RoleRules) -> list[Turn]:
    """Return turns that fit a template with these rules. The texts of all turns are kept, in their order."""
    if rules == RoleRules():
        return list(turns)
    found = _system_fitted(list(turns), rules)
    if rules.begins_with_user:
        first = next((i for i, turn in enumerate(found) if turn.role != "system"), None)
        if first is not None and found[first].role in ("assistant", "tool"):
            found.insert(first, Turn("user", ""))
    mergeable = {role for role, has in (("user", rules.merges_users), ("assistant", rules.merges_assistants)) if has}
    # A turn with calls is not merged, so its key in the grouping is unique.
    groups = groupby(enumerate(found), lambda at: at[0] if at[1].tool_calls else at[1].role)
    joined: list[Turn] = []
    for role, group in groups:
        turns = [turn for _, turn in group]
        joined += [merged(turns)] if role in mergeable else turns
    if rules.answers_tools:
        joined = _alternating(joined)
    return with_short_ids(joined) if rules.has_short_ids else joined


def _alternating(turns: list[Turn]) -> list[Turn]:
    """Insert empty turns, so that the turns of users and those of assistants without calls alternate."""
    found: list[Turn] = []
    last = ""
    for turn in turns:
        if turn.role in ("user", "assistant") and not turn.tool_calls:
            if turn.role == last:
                found.append(Turn("assistant" if last == "user" else "user", ""))
            last = turn.role
        found.append(turn)
    return found


def _system_fitted(turns: list[Turn], rules: RoleRules) -> list[Turn]:
    count = next((i for i, turn in enumerate(turns) if turn.role != "system"), len(turns))
    first, rest = turns[:count], turns[count:]
    if rules.has_one_system or (rules.has_no_system and len(first) > 1):
        first = [merged(first)] if first else []
    if first and (rules.has_no_system or (rules.needs_user and not rest)):
        first = [replace(turn, role="user") for turn in first]
        if rest and rest[0].role == "user":
            rest[0] = replace(rest[0], content=merged([first.pop(), rest[0]]).content)
    if rules.has_no_system or rules.has_early_system:
        rest = [replace(turn, role="user") if turn.role == "system" else turn for turn in rest]
    return first + rest
