"""Errors as OpenAI writes them: the `error` object, and the statuses that its SDKs turn into their exceptions."""

from collections.abc import Mapping

from http_bridge.api.reply_writer import ErrorWriter, JsonObject, error_message
from http_bridge.errors import ApiError
from http_bridge.protocol.reply_schemas import OPENAI_ERROR

# OpenAI's status and code by Cloudflare's code. Other errors keep their status. Their code is the one that `_CODES` has
# for the status, or else Cloudflare's.
_OPENAI: Mapping[int, tuple[int, str]] = {
    3042: (404, "model_not_found"),
    5007: (404, "model_not_found"),
    5021: (400, "context_length_exceeded"),
    5028: (404, "model_not_found"),
    7000: (404, "unknown_url"),
    7001: (405, "method_not_allowed"),
    9106: (401, "invalid_api_key"),
}
_CODES = {401: "invalid_api_key", 429: "rate_limit_exceeded"}
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class OpenAiErrors(ErrorWriter):
    """OpenAI's `error` object together with Cloudflare's envelope, so that clients of either API can read the error."""

    schema = OPENAI_ERROR

    def status(self, error: ApiError) -> int:
        """Return OpenAI's HTTP status for the error."""
        return _status_and_code(error)[0]

    def payload(self, error: ApiError, request_id: str) -> JsonObject:
        """Return OpenAI's `error` object, together with the fields of Cloudflare's envelope."""
        entry = {"message": error_message(error, request_id), "code": error.code}
        return {"error": openai_error(error), "errors": [entry], "success": False, "result": {}, "messages": []}


def openai_error(error: ApiError) -> JsonObject:
    """Return OpenAI's `error` object. Its code is OpenAI's, or if OpenAI has none, Cloudflare's number as a string."""
    status, code = _status_and_code(error)
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"message": error.openai_message or error.description, "type": kind, "param": error.param, "code": code}


def _status_and_code(error: ApiError) -> tuple[int, str]:
    return _OPENAI.get(error.code) or (error.status, _CODES.get(error.status, str(error.code)))
