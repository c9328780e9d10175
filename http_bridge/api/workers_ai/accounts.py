"""Endpoint of /accounts, from which wrangler and the playground read the account of a token."""

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from http_bridge.api.workers_ai.replies import envelope
from http_bridge.auth.bearer import ACCOUNT_KEY

# The account in answers to requests that may use every account.
ANY_ACCOUNT = "local"


async def list_accounts(request: Request) -> Response:
    """Answer with the token's account, or with `local` if every account is accepted."""
    account = request.scope["state"][ACCOUNT_KEY] or ANY_ACCOUNT
    entry = {"id": account, "name": account, "type": "standard"}
    info = {"page": 1, "per_page": 20, "count": 1, "total_count": 1, "total_pages": 1}
    return JSONResponse({**envelope([entry]), "result_info": info})
