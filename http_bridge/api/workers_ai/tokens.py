"""/user/tokens/verify and /accounts/{id}/tokens/verify: what tools ask before they believe in a token."""

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from http_bridge.api.workers_ai.replies import envelope
from http_bridge.auth.bearer import TokenCheck, token_id
from http_bridge.errors import ApiError

_ACTIVE = {"code": 10000, "message": "This API Token is valid and active", "type": None}


class VerifyToken:
    """Endpoint; a wrong token is told in other words than on the other routes."""

    def __init__(self, check: TokenCheck) -> None:
        self._check = check

    async def __call__(self, request: Request) -> Response:
        headers = request.scope["headers"]
        try:
            self._check.check(headers, request.path_params.get("account"))
        except ApiError as error:
            raise ApiError(401, 1000, "Invalid API Token") if error.status == 401 else error from None
        return JSONResponse({**envelope({"id": token_id(headers), "status": "active"}), "messages": [_ACTIVE]})
