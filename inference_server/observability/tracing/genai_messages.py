"""Converts prompts and replies to GenAI messages: JSON text for spans, recorded only if an OTEL_* variable enables it.

Schemas: gen-ai-input-messages.json and gen-ai-output-messages.json of semantic-conventions-genai.
"""

import json
from collections.abc import Iterable
from typing import Any

from inference_server.generation import ToolCall
from tailrace.v1 import inference_pb2 as pb


def input_messages(request: pb.RunRequest) -> str:
    """Return a JSON array with a message for each turn. A raw prompt becomes one user message."""
    if request.WhichOneof("input") == "chat":
        return _json([{"role": turn.role, "parts": _parts(turn)} for turn in request.chat.turns])
    return _json([{"role": "user", "parts": [_text(request.text)]}])


def output_messages(text: str, calls: Iterable[ToolCall], finish_reason: str, reasoning: str = "") -> str:
    """Return a JSON array with the assistant's message.

    Args:
        text: Text of the reply.
        calls: Tool calls of the reply.
        finish_reason: The finish reason, or the outcome of an unfinished reply.
        reasoning: Thoughts of the reply.
    """
    parts = [*_texts(reasoning, text), *(_call(call) for call in calls)]
    return _json([{"role": "assistant", "parts": parts, "finish_reason": finish_reason}])


def _parts(turn: pb.ChatTurn) -> list[dict[str, Any]]:
    if turn.role == "tool":
        return [{"type": "tool_call_response", "id": turn.tool_call_id, "response": turn.content}]
    return [*_texts(turn.reasoning, turn.content), *(_call(call) for call in turn.tool_calls)]


def _texts(reasoning: str, text: str) -> list[dict[str, Any]]:
    thoughts = [{"type": "reasoning", "content": reasoning}] if reasoning else []
    return thoughts + ([_text(text)] if text else [])


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "content": text}


def _call(call: ToolCall | pb.ToolCall) -> dict[str, Any]:
    return {"type": "tool_call", "id": call.id, "name": call.name, "arguments": call.arguments}


def _json(messages: list[dict[str, Any]]) -> str:
    return json.dumps(messages, ensure_ascii=False)
