"""Replies and errors as Workers AI writes them: in Cloudflare's envelope over REST, without it for a Worker's binding."""

import json
import sys
from collections.abc import Callable

from http_bridge.api.reply_writer import (
    CompleteReply,
    ErrorWriter,
    JsonObject,
    ReplyWriter,
    error_message,
    json_bytes,
    padding,
    usage_payload,
)
from http_bridge.errors import ApiError
from http_bridge.protocol import sse
from http_bridge.protocol.profiles import Profile
from http_bridge.protocol.reply_schemas import BINDING_ERROR, REST_ERROR
from http_bridge.protocol.validation.documents import zipped
from tailrace.v1.inference_pb2 import Completed, Delta, ToolCall

_MAX_DIGITS = 4000  # int() raises an error beyond 4300


def envelope(result: object) -> JsonObject:
    """Return Cloudflare's envelope of a successful reply."""
    return {"result": result, "success": True, "errors": [], "messages": []}


class RestErrors(ErrorWriter):
    """Cloudflare's envelope for an error that concerns a model."""

    schema = REST_ERROR

    def payload(self, error: ApiError, request_id: str) -> JsonObject:
        """Return the envelope with one error."""
        entry = {"message": error_message(error, request_id), "code": error.code}
        return {"errors": [entry], "success": False, "result": {}, "messages": []}


class BindingErrors(ErrorWriter):
    """The flat object that the Workers runtime turns into an exception."""

    schema = BINDING_ERROR

    def payload(self, error: ApiError, request_id: str) -> JsonObject:
        """Return the error as a flat object."""
        return {
            "name": "AiError",
            "internalCode": error.code,
            "httpCode": error.status,
            "message": error_message(error, request_id),
            "description": error.description,
            "requestId": request_id,
        }


def bare(result: object) -> bytes:
    """Return the binding's result as JSON, without an envelope."""
    return json_bytes(result) if isinstance(result, dict) else json.dumps(result).encode()


def enveloped(result: object) -> bytes:
    """Return the result in Cloudflare's envelope as JSON."""
    return json_bytes(envelope(result))


def enveloped_json(result: bytes) -> bytes:
    """Return a result, which is JSON already, in Cloudflare's envelope."""
    return b'{"result":' + result + b',"success":true,"errors":[],"messages":[]}'


def bare_zipped(result: object) -> bytes:
    """Return the gzipped result for @cloudflare/ai 1.1.0, which decompresses replies that are not streamed."""
    return zipped(bare(result))


class WorkersAiWriter(ReplyWriter):
    """Writes `{"response": …}`, complete or in events."""

    def __init__(
        self,
        profile: Profile,
        wrap: Callable[[object], bytes],
        *,
        has_padding: bool,
        is_json: bool,
        has_tools: bool,
        hides_reasoning: bool = False,
    ) -> None:
        """Set the reply format.

        Args:
            profile: The API version, which determines usage, padding and reasoning.
            wrap: Encodes the result of a complete reply.
            has_padding: Whether the settings enable padding in streams.
            is_json: Whether the reply's text is a JSON document and is written as one.
            has_tools: Whether the reply always has the field `tool_calls`, even if it is empty.
            hides_reasoning: Whether the model's thoughts are left out.
        """
        self._profile = profile
        self._wrap = wrap
        self._has_padding = has_padding or profile.has_padding
        self._is_json = is_json
        self._has_tools = has_tools
        self._has_reasoning = profile.has_reasoning and not hides_reasoning

    def complete(self, reply: CompleteReply) -> bytes:
        """Return the reply as one object.

        Raises:
            ApiError: 400/5024 if the reply ended before its JSON document was complete.
        """
        is_call = bool(reply.tool_calls) and not reply.text
        response: object = _document(reply.text) if self._is_json and not is_call else reply.text
        result: JsonObject = {"response": None if is_call else response}
        if reply.reasoning and self._has_reasoning:
            result["reasoning_content"] = reply.reasoning
        if self._has_tools:
            result["tool_calls"] = [_classic(call) for call in reply.tool_calls]
        if self._profile.has_usage:
            result["usage"] = self._usage(reply.completed)
        return self._wrap(result)

    def text(self, text: str) -> bytes:
        """Return one event with the text."""
        return sse.text_event(text, padding() if self._has_padding else None)

    def delta(self, delta: Delta) -> bytes:
        """Return one event for each of the delta's parts: thoughts, text and tool calls."""
        data = b""
        if delta.reasoning and self._has_reasoning:
            data = sse.event({"response": "", "reasoning_content": delta.reasoning})
        if delta.text:
            data += self.text(delta.text)
        if calls := [_streamed(call) for call in delta.tool_calls]:
            data += sse.event({"response": "", "tool_calls": calls})
        return data

    def finish(self, completed: Completed) -> bytes:
        """Return the usage, if the profile has one, and the end of the stream."""
        if not self._profile.has_usage:
            return sse.DONE
        return sse.event({"response": "", "usage": self._usage(completed)}) + sse.DONE

    def error(self, error: ApiError, request_id: str) -> bytes:
        """Return an event with the error."""
        return error_event(error, request_id)

    def _usage(self, completed: Completed) -> JsonObject:
        return run_usage(completed, counts_cached=self._profile.counts_cached)


def error_event(error: ApiError, request_id: str) -> bytes:
    """Return an event with the error. Its empty `response` adds nothing to a page that appends every response."""
    entry = {"code": error.code, "message": error_message(error, request_id)}
    return sse.event({"response": "", "errors": [entry], "success": False})


def run_usage(completed: Completed, *, counts_cached: bool) -> JsonObject:
    """Return the token counts of a reply, with those of its thoughts if it has any."""
    payload = usage_payload(completed, counts_cached=counts_cached)
    if completed.usage.reasoning_tokens:
        payload["completion_tokens_details"] = {"reasoning_tokens": completed.usage.reasoning_tokens}
    return payload


def _document(text: str) -> object:
    try:
        return _parsed(text)
    except ValueError:  # max_tokens or another limit truncated the document
        raise ApiError(400, 5024, "JSON Mode couldn't be met") from None


def _parsed(text: str) -> object:
    """Return the JSON value that a model wrote. Numbers beyond float's range become its largest or smallest number.

    Without that, a reply with 1e999 or with thousands of digits could not be sent as JSON.

    Raises:
        ValueError: The text is not JSON.
    """
    return json.loads(text, parse_float=_finite, parse_int=_integer)


def _finite(digits: str) -> float:
    return max(-sys.float_info.max, min(sys.float_info.max, float(digits)))


def _integer(digits: str) -> int | float:
    return int(digits) if len(digits) <= _MAX_DIGITS else _finite(digits)


def _classic(call: ToolCall) -> JsonObject:
    return {"name": call.name, "arguments": _parsed(call.arguments)}


def _streamed(call: ToolCall) -> JsonObject:
    return {"id": call.id, "type": "function", **_classic(call)}
