"""The routes of stored responses: retrieve, delete, cancel, list items. No response is stored, so none is found."""

from starlette.requests import Request
from starlette.responses import Response

from http_bridge.errors import ApiError


async def not_stored(request: Request) -> Response:
    """Refuse the request: 404, as OpenAI does for an unknown response."""
    name = request.path_params["response"].partition("/")[0]
    raise ApiError(
        404, 5006, f"Response {name!r:.100} not found: responses are not stored, so that none can be retrieved"
    )
