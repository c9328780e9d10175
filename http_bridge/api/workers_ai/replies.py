"""Replies as Workers AI writes them, to REST in Cloudflare's envelope and to a Worker's binding without it."""

import json
from collections.abc import Callable, Mapping

from http_bridge.api.reply_writer import ErrorForm, JsonObject, ReplyForm, Whole, error_message, padding, usage_payload
from http_bridge.errors import ApiError
from http_bridge.protocol import sse
from http_bridge.protocol.profiles import Profile
from http_bridge.protocol.validation import zipped
from tailrace.v1.inference_pb2 import Completed, Delta, ToolCall


def json_bytes(payload: Mapping[str, object]) -> bytes:
    return json.dumps(payload, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def envelope(result: object) -> JsonObject:
    return {"result": result, "success": True, "errors": [], "messages": []}


class RestErrors(ErrorForm):
    """Cloudflare's envelope of an error on the way to a model or in it."""

    def payload(self, error: ApiError, request_id: str) -> JsonObject:
        entry = {"message": error_message(error, request_id), "code": error.code}
        return {"errors": [entry], "success": False, "result": {}, "messages": []}


class BindingErrors(ErrorForm):
    """The flat object that the Workers runtime turns into an exception."""

    def payload(self, error: ApiError, request_id: str) -> JsonObject:
        return {
            "name": "AiError",
            "internalCode": error.code,
            "httpCode": error.status,
            "message": error_message(error, request_id),
            "description": error.description,
            "requestId": request_id,
        }


def bare(result: object) -> bytes:
    """The binding's result, as it is."""
    return json_bytes(result) if isinstance(result, dict) else json.dumps(result).encode()


def enveloped(result: object) -> bytes:
    return json_bytes(envelope(result))


def bare_zipped(result: object) -> bytes:
    """For @cloudflare/ai 1.1.0, which unpacks what is not streamed itself, whatever the headers say."""
    return zipped(bare(result))


class WorkersAiForm(ReplyForm):
    """`{"response": …}`, whole or piece by piece."""

    def __init__(
        self, profile: Profile, wrap: Callable[[object], bytes], *, has_padding: bool, is_json: bool, has_tools: bool
    ) -> None:
        """`is_json`: the reply is a JSON document, given as such. `has_tools`: calls are told, also that there are none."""
        self._profile = profile
        self._wrap = wrap
        self._has_padding = has_padding or profile.has_padding
        self._is_json = is_json
        self._has_tools = has_tools

    def whole(self, reply: Whole) -> bytes:
        response: object = _document(reply.text) if self._is_json else reply.text
        result: JsonObject = {"response": None if reply.tool_calls and not response else response}
        if self._has_tools:
            result["tool_calls"] = [_classic(call) for call in reply.tool_calls]
        if self._profile.has_usage:
            result["usage"] = self._usage(reply.completed)
        return self._wrap(result)

    def text(self, text: str) -> bytes:
        return sse.text_event(text, padding() if self._has_padding else None)

    def delta(self, delta: Delta) -> bytes:
        calls = [_streamed(call) for call in delta.tool_calls]
        text = self.text(delta.text) if delta.text else b""
        return text + sse.event({"response": "", "tool_calls": calls}) if calls else text

    def end(self, completed: Completed) -> bytes:
        if not self._profile.has_usage:
            return sse.DONE
        return sse.event({"response": "", "usage": self._usage(completed)}) + sse.DONE

    def failure(self, error: ApiError, request_id: str) -> bytes:
        # Its empty `response` adds nothing to a page that appends it.
        entry = {"code": error.code, "message": error_message(error, request_id)}
        return sse.event({"response": "", "errors": [entry], "success": False})

    def _usage(self, completed: Completed) -> JsonObject:
        return usage_payload(completed, counts_cached=self._profile.counts_cached)


def _document(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:  # it was cut by max_tokens
        raise ApiError(400, 5024, "JSON Mode couldn't be met") from None


def _classic(call: ToolCall) -> JsonObject:
    return {"name": call.name, "arguments": json.loads(call.arguments)}


def _streamed(call: ToolCall) -> JsonObject:
    return {"id": call.id, "type": "function", **_classic(call)}
