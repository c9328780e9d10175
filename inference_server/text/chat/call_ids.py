"""Maps the ids of tool calls to the form that Mistral's chat templates require: exactly 9 ASCII letters and digits."""

import hashlib
import re
import string
from collections.abc import Sequence as Items
from dataclasses import replace

from inference_server.text.chat.turns import Turn

_LENGTH = 9
_LETTERS = string.ascii_letters + string.digits
_FITTING = re.compile(rf"[a-zA-Z0-9]{{{_LENGTH}}}")


def with_short_ids(turns: Items[Turn]) -> list[Turn]:
    """Return turns in which every call and its result have the same short id.

    An id that already has the form is kept. The other short ids depend on the given id alone. So a longer conversation
    keeps the ids of its beginning, and its tokens are found in the prefix cache. A call without an id gets one from its
    position. A result without an id belongs to the first call without a result in the last turn with calls.
    """
    taken: dict[str, str] = {}  # given id by short id
    unanswered: list[str] = []
    found = []
    for index, turn in enumerate(turns):
        if turn.tool_calls:
            ids = [call.id or f"{index}.{place}" for place, call in enumerate(turn.tool_calls)]
            calls = zip(turn.tool_calls, ids, strict=True)
            turn = replace(turn, tool_calls=tuple(replace(call, id=_short(given, taken)) for call, given in calls))
            unanswered = ids
        elif turn.role == "tool":
            given = turn.tool_call_id or (unanswered[0] if unanswered else f"{index}")
            if given in unanswered:
                unanswered.remove(given)
            turn = replace(turn, tool_call_id=_short(given, taken))
        found.append(turn)
    return found


def _short(given: str, taken: dict[str, str]) -> str:
    """Return the short form of an id, different from those of other ids in `taken`, and add it to `taken`."""
    short, salt = given, 0
    while not _FITTING.fullmatch(short) or taken.get(short, given) != given:
        number = int.from_bytes(hashlib.sha256(f"{salt} {given}".encode()).digest()[:16], "big")
        short = ""
        for _ in range(_LENGTH):
            number, letter = divmod(number, len(_LETTERS))
            short += _LETTERS[letter]
        salt += 1
    taken[short] = given
    return short
