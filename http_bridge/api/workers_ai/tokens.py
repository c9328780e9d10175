"""Endpoints about the request's token: /user/tokens/verify, /accounts/{id}/tokens/verify and /accounts.

Tools call them before they use a token.
"""

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from http_bridge.api.workers_ai.replies import envelope
from http_bridge.auth.bearer import ACCOUNT_KEY, TokenCheck, token_id
from http_bridge.errors import ApiError

# The account of a token for every account. Any name would be valid; documents and examples use this one.
_ANY_ACCOUNT = "local"
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


async def list_accounts(request: Request) -> Response:
    """GET /accounts: return the account of the request's token; "local" if it is for every account or not needed."""
    account = request.scope["state"].get(ACCOUNT_KEY) or _ANY_ACCOUNT
    page = {"page": 1, "per_page": 20, "count": 1, "total_count": 1, "total_pages": 1}
    return JSONResponse({**envelope([{"id": account, "name": account, "type": "standard"}]), "result_info": page})
