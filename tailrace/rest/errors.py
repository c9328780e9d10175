"""Converts the bridge's errors, and those of the connection, to the client's errors."""

import json
from typing import Any

import httpx2

from tailrace.endpoint import Endpoint
from tailrace.errors import (
    AuthenticationError,
    ConnectionFailedError,
    DeadlineError,
    ForbiddenError,
    GenerationError,
    InvalidRequestError,
    NotRecordedError,
    OverloadedError,
    PromptTooLongError,
    RateLimitError,
    TailraceError,
    UnavailableError,
    UnknownModelError,
)

# Class and reason by Cloudflare's code. The reason is the one of the gRPC contract that the code stands for; empty if
# the code stands for several unrelated causes.
_BY_CODE: dict[int, tuple[type[TailraceError], str]] = {
    3000: (GenerationError, "GENERATION_FAILED"),
    3007: (DeadlineError, ""),
    3021: (RateLimitError, "RATE_LIMITED"),
    3040: (OverloadedError, "CAPACITY_EXCEEDED"),
    3042: (UnknownModelError, "UNKNOWN_MODEL"),
    5005: (InvalidRequestError, "UNKNOWN_ADAPTER"),
    5006: (InvalidRequestError, "INVALID_FIELD"),
    5007: (UnknownModelError, "UNKNOWN_MODEL"),
    5021: (PromptTooLongError, "PROMPT_TOO_LONG"),
    5028: (UnknownModelError, "UNKNOWN_MODEL"),
    5098: (NotRecordedError, "NOT_RECORDED"),
    7009: (UnavailableError, ""),
    9106: (AuthenticationError, "UNAUTHENTICATED"),
}
# Class and reason by HTTP status, if the code is unknown or another program answered.
_BY_STATUS: dict[int, tuple[type[TailraceError], str]] = {
    401: (AuthenticationError, "UNAUTHENTICATED"),
    403: (ForbiddenError, ""),
    408: (DeadlineError, ""),
    429: (OverloadedError, "CAPACITY_EXCEEDED"),
    502: (UnavailableError, ""),
    503: (UnavailableError, ""),
    504: (DeadlineError, ""),
}
_FIRST_SERVER_ERROR = 500


def request_id_of(response: httpx2.Response) -> str:
    """Return the request's id in the logs of the services; empty if the answer has none."""
    headers = response.headers
    return headers.get("cf-ai-req-id") or headers.get("x-request-id") or ""


def response_error(response: httpx2.Response) -> TailraceError:
    """Return the error for a response whose status is not 200, and whose body has been read."""
    code, message = _code_and_message(response.content)
    status = response.status_code
    if not message:
        message = f"The address answered {status} {response.reason_phrase}".rstrip() + ", without an error of Tailrace."
    kind, reason = _kind(code, status)
    return kind(
        message,
        reason=reason,
        code=code,
        http_status=status,
        retry_after=_seconds(response.headers.get("retry-after")),
        request_id=request_id_of(response) or None,
    )


def stream_error(error: dict[str, Any], request_id: str) -> TailraceError:
    """Return the error that a stream reports as its last event."""
    text = str(error.get("code") or "")
    code = int(text) if text.isdecimal() else None
    kind, reason = _kind(code, 200)
    message = str(error.get("message") or "The reply failed.")
    return kind(message, reason=reason, code=code, http_status=200, request_id=request_id or None)


def connection_error(
    error: Exception, endpoint: Endpoint, timeout: float | None, request_id: str = ""
) -> TailraceError:
    """Return the error for a request that got no answer, or only a part of one."""
    if isinstance(error, httpx2.TimeoutException) and not isinstance(error, httpx2.ConnectTimeout):
        return late(timeout, request_id)
    if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout):
        return ConnectionFailedError(
            f"No bridge answers at {endpoint.url} ({_reason(error)}): start one with `tailrace serve`, or set TAILRACE_URL."
        )
    doubt = ", or it is no bridge" if isinstance(error, httpx2.RemoteProtocolError) else ""
    sentence = f"The connection to {endpoint.url} broke{doubt}: {_reason(error)}."
    return ConnectionFailedError(sentence, request_id=request_id or None)


def late(timeout: float | None, request_id: str = "") -> DeadlineError:
    """Return the error for a reply that was not complete in time."""
    sentence = f"The reply was not complete within timeout, {timeout:g} s." if timeout else "The reply was late."
    return DeadlineError(sentence, request_id=request_id or None)


def _reason(error: Exception) -> str:
    return str(error).rstrip(".") or type(error).__name__


def _kind(code: int | None, status: int) -> tuple[type[TailraceError], str]:
    if code == 10000 and status == 403:
        return _BY_STATUS[403]
    if code in _BY_CODE:
        return _BY_CODE[code]
    if status in _BY_STATUS:
        return _BY_STATUS[status]
    return (GenerationError if status >= _FIRST_SERVER_ERROR or status == 200 else InvalidRequestError), ""


def _code_and_message(content: bytes) -> tuple[int | None, str]:
    """Return Cloudflare's code and the sentence of an error's body; None and empty if it is another program's."""
    try:
        document = json.loads(content)
        code = document["errors"][0]["code"]
        openai = document.get("error") or {}
        return (code if isinstance(code, int) else None), str(openai.get("message") or document["errors"][0]["message"])
    except (ValueError, LookupError, TypeError, AttributeError):
        return None, ""


def _seconds(header: str | None) -> float | None:
    # Tailrace sends seconds. A date, which a proxy may send, is treated like no header: the client computes the pause.
    return float(header) if header and header.isdecimal() else None
