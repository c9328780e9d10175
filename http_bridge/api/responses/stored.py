"""The routes of stored responses: retrieve, delete, cancel, list items. No response is stored, so none is found."""

from starlette.requests import Request
from starlette.responses import Response

from http_bridge.errors import ApiError

# OpenAI's routes below /v1/responses whose second part is not the id of a response.
_OTHERS = ("responses/input_tokens", "responses/compact")


async def not_stored(request: Request) -> Response:
    """Refuse the request: 404, as OpenAI does for an unknown response."""
    name = request.url.path.partition("/v1/")[2]
    if name in _OTHERS:
        raise ApiError(404, 7000, f"No route for that URI: {name} is not served here")
    name = request.path_params["response"].partition("/")[0]
    raise ApiError(
        404, 5006, f"Response {name!r:.100} not found: responses are not stored, so that none can be retrieved"
    )
