"""Endpoint of /user/tokens/verify and /accounts/{id}/tokens/verify, which tools call before they use a token."""

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from http_bridge.api.workers_ai.replies import envelope
from http_bridge.auth.bearer import TokenCheck, token_id
from http_bridge.errors import ApiError

_ACTIVE = {"code": 10000, "message": "This API Token is valid and active", "type": None}


class VerifyToken:
    """Endpoint that reports whether the request's token is valid."""

    def __init__(self, check: TokenCheck) -> None:
        self._check = check

    async def __call__(self, request: Request) -> Response:
        """Answer with the token's id. The error for an invalid token differs from that of other routes: 401/1000."""
        headers = request.scope["headers"]
        try:
            self._check.check(headers, request.path_params.get("account"))
        except ApiError as error:
            raise ApiError(401, 1000, "Invalid API Token") if error.status == 401 else error from None
        return JSONResponse({**envelope({"id": token_id(headers), "status": "active"}), "messages": [_ACTIVE]})
