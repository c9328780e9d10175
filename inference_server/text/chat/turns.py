"""The turns of a conversation, and the messages that chat templates expect for them."""

import json
from collections.abc import Iterator
from collections.abc import Sequence as Items
from dataclasses import dataclass, replace
from typing import Any

from inference_server.generation import ToolCall
from inference_server.text import tool_formats
from inference_server.text.tool_formats import Tool

# Keys under which a message contains its thoughts. Each template reads one of them.
REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
# Keys of messages and tools that do not come from a client.
MESSAGE_NAMES = frozenset(
    ("role", "content", "tool_calls", "tool_call_id", "id", "type", "function", "name", "arguments")
    + ("description", "parameters")
    + REASONING_KEYS
)


@dataclass(frozen=True, slots=True)
class Turn:
    """A message of a conversation.

    `tool_calls` and `reasoning` belong to an assistant, `tool_call_id` and `name` to a tool.
    """

    role: str
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    name: str = ""
    reasoning: str = ""


def merged(turns: Items[Turn]) -> Turn:
    """Merge turns of the same role into one turn with all texts and calls. `turns`: at least one turn."""
    return replace(
        turns[0],
        content="\n\n".join(turn.content for turn in turns if turn.content),
        tool_calls=tuple(call for turn in turns for call in turn.tool_calls),
        reasoning="\n\n".join(turn.reasoning for turn in turns if turn.reasoning),
    )


def message(turn: Turn, *, has_text_arguments: bool = False) -> dict[str, Any]:
    """Return a turn as a message for a chat template.

    Args:
        turn: The turn.
        has_text_arguments: True if the template expects the arguments of calls as JSON text instead of objects.
    """
    found: dict[str, Any] = {"role": turn.role, "content": turn.content}
    if turn.reasoning:
        found |= dict.fromkeys(REASONING_KEYS, turn.reasoning)
    if turn.tool_calls:
        found["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {
                    "name": call.name,
                    "arguments": call.arguments if has_text_arguments else json.loads(call.arguments),
                },
            }
            for call in turn.tool_calls
        ]
    if turn.tool_call_id:
        found["tool_call_id"] = turn.tool_call_id
    if turn.name:
        found["name"] = turn.name
    return found


def as_plain_text(turns: Items[Turn], tools: Items[Tool]) -> Iterator[Turn]:
    """Yield the same conversation with tools, calls and results as text, for a template without tool support."""
    rest = list(turns)
    if tools:
        system = rest.pop(0).content + "\n\n" if rest and rest[0].role == "system" else ""
        yield Turn("system", system + tool_formats.system_text(tools))
    for turn in rest:
        if turn.role == "tool":
            yield Turn("user", tool_formats.result_text(turn.content))
        elif turn.tool_calls:
            text = "\n".join(filter(None, (turn.content, tool_formats.call_text(turn.tool_calls))))
            yield replace(turn, content=text, tool_calls=())
        else:
            yield turn
