"""Refusals of Workers AI in production that Tailrace has only in a strict profile.

Their codes are 5023, 5028 (for a model that a server here hosts) and 8006. Code that is tested with a strict profile
meets these errors before it is deployed.
"""

from http_bridge.errors import ApiError
from http_bridge.protocol.grpc_errors import removed_model
from http_bridge.protocol.profiles import Profile
from http_bridge.protocol.run_body import RunBody
from tailrace_shared.catalogue.workers_ai import removed_on


def check_request(body: RunBody, profile: Profile, model: str) -> None:
    """Raise the error with which Workers AI would refuse the request, if the profile is strict.

    Raises:
        ApiError: 400/5028 for a model that Cloudflare removed, 400/5023 for JSON mode in a stream.
    """
    if not profile.is_strict:
        return
    if day := removed_on(model):
        raise removed_model(day)
    if body.stream and body.json_schema is not None:
        raise ApiError(400, 5023, "JSON Schema mode is not supported with stream mode.")


def cut_call(*, by_time_limit: bool) -> ApiError:
    """Return the error for a reply that was truncated before its forced tool call was complete: 400/8006.

    `by_time_limit`: True if the time limit truncated the reply, False if it was a limit of tokens.
    """
    cause = (
        "the time limit of the reply expired before the forced tool call was complete. Try again"
        if by_time_limit
        else "the reply reached max_tokens before the forced tool call was complete. Increase max_tokens"
    )
    return ApiError(400, 8006, f"Invalid data for tool_choice: {cause}.")
