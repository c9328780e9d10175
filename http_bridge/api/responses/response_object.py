"""Builds the Response object and its output items as JSON objects."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from http_bridge.api.openai.replies import logprob_payload
from http_bridge.api.reply_writer import JsonObject
from http_bridge.api.responses.thoughts import sealed
from http_bridge.api.responses.tools import INPUT, Toolbox
from tailrace.v1 import inference_pb2 as pb
from tailrace.v1.inference_pb2 import Completed, TokenLogprob, ToolCall
from tailrace_shared.request_fields import DEFAULT_TEMPERATURE

Status = Literal["in_progress", "completed", "incomplete", "failed"]

# The finish reasons of a truncated reply.
_CUT = (pb.FINISH_REASON_LENGTH, pb.FINISH_REASON_TIME_LIMIT)
_ECHOED = ("instructions", "max_output_tokens", "max_tool_calls", "prompt_cache_key", "safety_identifier", "user")


@dataclass(frozen=True, slots=True)
class Request:
    """The parts of a request that its reply needs.

    Attributes:
        request_id: Id of the request, a UUID.
        fields: The fields of the Response object that the request determines.
        toolbox: The tools, to find the client's tool for a call.
        seals_thoughts: Whether reasoning items have `encrypted_content`.
        hides_thoughts: Whether the reply has no reasoning items.
        account: Account of the request; may be empty.
        keeps_items: Whether a later request may refer to the reply's items.
        is_from_codex: Whether the client is Codex.
    """

    request_id: str
    fields: JsonObject
    toolbox: Toolbox
    seals_thoughts: bool = False
    hides_thoughts: bool = False
    account: str = ""
    keeps_items: bool = False
    is_from_codex: bool = False

    @property
    def has_summary(self) -> bool:
        """True if the client requested a summary. The field `summary` of the reply then repeats the thoughts."""
        reasoning = self.fields["reasoning"]
        return isinstance(reasoning, dict) and reasoning["summary"] is not None

    def item_id(self, prefix: str, index: int) -> str:
        """Return the id of the output item at `index`. `prefix`: its beginning, which names the type."""
        return f"{prefix}_{self.request_id.replace('-', '')}{index:02x}"


def request_fields(
    document: Mapping[str, Any], tools: Sequence[Mapping[str, Any]], defaults: Mapping[str, float]
) -> JsonObject:
    """Return the fields of the Response object that a request determines.

    Args:
        document: The request's body.
        tools: The client's tools, without those that were left out.
        defaults: The model's sampling defaults.
    """
    reasoning, text = document.get("reasoning"), document.get("text")
    if not isinstance(reasoning, dict):
        # In bodies of other formats, `reasoning` is the effort itself, or a boolean.
        reasoning = {"effort": reasoning} if isinstance(reasoning, str) else {}
    if not isinstance(text, dict):
        text = {}
    parallel = document.get("parallel_tool_calls")
    given = {name: document[name] for name in ("temperature", "top_p") if document.get(name) is not None}
    sampling = {"temperature": DEFAULT_TEMPERATURE, "top_p": 1, **defaults, **given}
    return {
        "background": False,
        **{name: document.get(name) for name in _ECHOED},
        "metadata": document.get("metadata") or {},
        "model": document["model"],
        "parallel_tool_calls": True if parallel is None else parallel,
        "previous_response_id": None,
        "reasoning": {
            "effort": reasoning.get("effort"),
            "summary": reasoning.get("summary") or reasoning.get("generate_summary"),
        },
        "service_tier": "default",
        "store": False,
        "temperature": sampling["temperature"],
        "text": {"format": text.get("format") or {"type": "text"}, "verbosity": text.get("verbosity") or "medium"},
        "tool_choice": document.get("tool_choice") or "auto",
        "tools": list(tools),
        "top_logprobs": document.get("top_logprobs") or 0,
        "top_p": sampling["top_p"],
        "truncation": "disabled",
    }


def response_payload(
    request: Request,
    created: int,
    status: Status,
    output: Sequence[JsonObject],
    completed: Completed | None = None,
    error: JsonObject | None = None,
) -> JsonObject:
    """Return the Response object.

    Args:
        request: The request.
        created: Time of the request, in seconds since 1970.
        status: Status of the response.
        output: The output items so far.
        completed: The server's last message; None if the reply has failed or has not ended yet.
        error: The error of a failed response.
    """
    return {
        "id": request.item_id("resp", 0),
        "object": "response",
        "created_at": created,
        "status": status,
        "completed_at": int(time.time()) if status == "completed" else None,
        "error": error,
        "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
        **request.fields,
        "output": list(output),
        "usage": None if completed is None else _usage(completed),
    }


def end_status(completed: Completed) -> Literal["completed", "incomplete"]:
    """Return the status of a response that ended without an error."""
    return "incomplete" if completed.finish_reason in _CUT else "completed"


def message_item(item_id: str, status: Status, parts: Sequence[JsonObject]) -> JsonObject:
    """Return the output item with the reply's text."""
    return {"id": item_id, "type": "message", "status": status, "role": "assistant", "content": list(parts)}


def text_part(text: str, logprobs: Sequence[TokenLogprob] = ()) -> JsonObject:
    """Return the content part of a message, with the log probabilities of its tokens."""
    return {
        "type": "output_text",
        "text": text,
        "annotations": [],
        "logprobs": [logprob_payload(item) for item in logprobs],
    }


def reasoning_part(text: str) -> JsonObject:
    """Return the content part of a reasoning item."""
    return {"type": "reasoning_text", "text": text}


def summary_part(text: str) -> JsonObject:
    """Return the summary part of a reasoning item."""
    return {"type": "summary_text", "text": text}


def reasoning_item(request: Request, item_id: str, status: Status, thoughts: str) -> JsonObject:
    """Return the reasoning item. With empty `thoughts`, it is the item at its start, before any content."""
    return {
        "id": item_id,
        "type": "reasoning",
        "status": status,
        "summary": [summary_part(thoughts)] if thoughts and request.has_summary else [],
        "content": [reasoning_part(thoughts)] if thoughts else [],
        "encrypted_content": sealed(thoughts) if thoughts and request.seals_thoughts else None,
    }


def call_item(request: Request, index: int, call: ToolCall) -> JsonObject:
    """Return the item of a complete tool call at `index` of the output."""
    origin = request.toolbox.origin(call.name)
    place = {"namespace": origin.namespace} if origin.namespace else {}
    if origin.is_custom:
        return {
            "id": request.item_id("ctc", index),
            "type": "custom_tool_call",
            "status": "completed",
            "call_id": call.id,
            "name": origin.name,
            "input": _custom_input(call.arguments),
            **place,
        }
    return {
        "id": request.item_id("fc", index),
        "type": "function_call",
        "status": "completed",
        "call_id": call.id,
        "name": origin.name,
        "arguments": call.arguments,
        **place,
    }


def _custom_input(arguments: str) -> str:
    """Return the input text of a custom tool's call. Arguments that do not fit the schema are returned unchanged."""
    try:
        value = json.loads(arguments).get(INPUT)
    except (ValueError, AttributeError):
        return arguments
    return value if isinstance(value, str) else arguments


def _usage(completed: Completed) -> JsonObject:
    usage = completed.usage
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
