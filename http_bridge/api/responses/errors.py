"""Errors of the Responses API, in OpenAI's form with the field in `param`."""

import re

from http_bridge.api.openai.replies import OpenAiErrors
from http_bridge.api.reply_writer import JsonObject
from http_bridge.errors import ApiError

# The server's errors name a turn of the conversation, which the body has as items.
_TURN = re.compile(r"/messages/\d+")
_PATH = re.compile(r"'/([\w/-]+)'")


class ResponsesErrors(OpenAiErrors):
    """OpenAI's errors, whose `param` is the path of the first wrong field."""

    def payload(self, error: ApiError, request_id: str) -> JsonObject:
        """Return the error."""
        return with_param(super().payload(error, request_id))


def with_param(payload: JsonObject) -> JsonObject:
    """Return an error with `param`, such as input[0].content for '/input/0/content' in its message."""
    error = payload["error"]
    if not isinstance(error, dict):
        return payload
    message = _TURN.sub("/input", str(error["message"])).replace("'/messages'", "'/input'")
    path = _PATH.search(message)
    param = error.get("param")
    if path is not None and param is None:
        first, *rest = path[1].split("/")
        param = first + "".join(f"[{part}]" if part.isdigit() else f".{part}" for part in rest)
    return {**payload, "error": {**error, "message": message, "param": param}}
