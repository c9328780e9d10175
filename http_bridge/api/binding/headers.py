"""Reads the headers of the Worker binding's requests: the model, and the version of the SDK."""

from http_bridge.api.base import IncomingRequest, check_model_name
from http_bridge.errors import ApiError

_MODEL_HEADER = "cf-consn-model-id"
SDK_HEADER = "cf-consn-sdk-version"
_SECOND_GENERATION = "1.1.0"


def is_zipped(incoming: IncomingRequest) -> bool:
    """Return True if the client is @cloudflare/ai 1.1.0.

    This client decompresses every complete reply as gzip data, even without a Content-Encoding header.
    """
    return incoming.query.get("version") == "2" or incoming.headers.get(SDK_HEADER) == _SECOND_GENERATION


def model_of(incoming: IncomingRequest) -> str:
    """Return the model that the header names. Raises ApiError 400/3003 without the header, 404/3042 for an invalid name."""
    name = incoming.headers.get(_MODEL_HEADER)
    if not name:
        raise ApiError(400, 3003, f"Request is missing headers or body: {_MODEL_HEADER}")
    # The Worker's author may configure a prefix, which ends at the first colon.
    prefix, colon, rest = name.partition(":")
    return check_model_name(rest if colon and not prefix.startswith("@") else name)
