"""Errors of the Responses API: OpenAI's format, with the names of this API's fields."""

from http_bridge.api.openai.errors import OpenAiErrors
from http_bridge.api.reply_writer import JsonObject
from http_bridge.errors import ApiError
from http_bridge.protocol.bodies.unsupported import IN_THIS_API

# The server's errors name the fields of chat completions. A renamed `param` has no index: several items may be a turn.
_NAMES = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "response_format": "text.format",
    "reasoning_effort": "reasoning.effort",
}


class ResponsesErrors(OpenAiErrors):
    """OpenAI's errors of the Responses API."""

    def payload(self, error: ApiError, request_id: str) -> JsonObject:
        """Return the error with the names of this API's fields."""
        payload = super().payload(error, request_id)
        details, param = payload["error"], error.param
        if not isinstance(details, dict) or param is None:
            return payload
        first = param.partition(".")[0].partition("[")[0]
        name = None if IN_THIS_API in error.description else _NAMES.get(first)
        if name is not None:
            path = f"'/{name.replace('.', '/')}"
            details = {**details, "message": str(details["message"]).replace(f"'/{first}", path)}
        return {**payload, "error": {**details, "param": name or param}}
