"""The error that a client receives instead of a reply. Does not depend on gRPC or on the JSON format of errors."""

from urllib.parse import quote

# Response header with the error in plain words, for people. Its characters beyond ASCII are percent-encoded UTF-8.
PLAIN_HEADER = "tailrace-error"
_ASCII = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")
_MAX_PLAIN = 1000


class ApiError(Exception):
    """A request that is refused or has failed.

    Attributes:
        status: HTTP status, 400 to 599.
        code: Cloudflare's error code.
        description: One sentence for the client; never the text of an exception.
        retry_after_seconds: Whole seconds, at least 1, after which a retry may succeed; None if unknown.
        openai_message: The description on OpenAI's routes, whose clients expect OpenAI's words; None: `description`.
        param: The first field that is wrong, in OpenAI's notation such as messages[0].content; None if unknown.
        is_unknown_model: Whether no server hosts the model.
        plain: The description in plain words, for PLAIN_HEADER; None: the description is plain already.
    """

    def __init__(
        self,
        status: int,
        code: int,
        description: str,
        *,
        retry_after_seconds: int | None = None,
        openai_message: str | None = None,
        param: str | None = None,
        is_unknown_model: bool = False,
        plain: str | None = None,
    ) -> None:
        super().__init__(description)
        self.status = status
        self.code = code
        self.description = description
        self.retry_after_seconds = retry_after_seconds
        self.openai_message = openai_message
        self.param = param
        self.is_unknown_model = is_unknown_model
        self.plain = plain

    @property
    def headers(self) -> dict[str, str]:
        """The response headers of the error."""
        headers = {} if self.retry_after_seconds is None else {"retry-after": str(self.retry_after_seconds)}
        if self.plain is not None:
            headers[PLAIN_HEADER] = quote(self.plain[:_MAX_PLAIN], safe=_ASCII, errors="replace")
        return headers


def internal_error() -> ApiError:
    """Return the error for every unexpected failure: 500 with code 3000. Its cause is only in the log."""
    return ApiError(500, 3000, "Internal error; the log of the server has the cause under this request id.")
