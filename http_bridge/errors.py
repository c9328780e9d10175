"""What a client gets instead of a reply, as a value. Knows nothing of gRPC, of envelopes or of how it is sent."""


class ApiError(Exception):
    """A request that is refused or has failed.

    status: HTTP status, 400 to 599.
    code: Cloudflare's number for this kind of error.
    description: one sentence for the client; never the text of an exception.
    retry_after_seconds: whole seconds, at least 1, after which trying again may help; None if nothing is known.
    """

    def __init__(self, status: int, code: int, description: str, *, retry_after_seconds: int | None = None) -> None:
        super().__init__(description)
        self.status = status
        self.code = code
        self.description = description
        self.retry_after_seconds = retry_after_seconds


def internal_error() -> ApiError:
    return ApiError(500, 3000, "Internal error; the log of the server has the cause under this request id.")
