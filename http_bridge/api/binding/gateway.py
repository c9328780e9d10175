"""Answers a Worker's calls of env.AI.gateway(id), toMarkdown and autorag: returns gateway addresses, refuses the rest.

endpoints/gateway.py serves the runs of a gateway. The Workers runtime turns an error into one of its exceptions:
AiGatewayInternalError, AiGatewayLogNotFound, AutoRAGNotFoundError, AutoRAGInternalError or AiInternalError.
"""

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from http_bridge.api.reply_writer import ErrorWriter, JsonObject, error_message
from http_bridge.api.workers_ai.replies import envelope
from http_bridge.errors import ApiError
from http_bridge.protocol.reply_schemas import GATEWAY_ERROR

WORKERS_AI = "workers-ai"
UNIVERSAL = "universal"
# Path below which clients find the providers of a gateway. Cloudflare's is https://gateway.ai.cloudflare.com/v1.
GATEWAY_PATH = "/ai-gateway/v1"
_NO_ACCOUNT = "local"  # the account in an address, if the request's token has none


class GatewayErrors(ErrorWriter):
    """The format of AI Gateway's errors. The runtime's classes for gateways, toMarkdown and AutoRAG read it."""

    schema = GATEWAY_ERROR

    def payload(self, error: ApiError, request_id: str) -> JsonObject:
        """Return one object with Cloudflare's envelope and with the fields of the binding's errors."""
        entry = {"code": error.code, "message": error.description}
        return {
            "success": False,
            "result": [],
            "messages": [],
            "error": [entry],
            "errors": [entry],
            "name": "AiGatewayError",
            "httpCode": error.status,
            "internalCode": error.code,
            "message": error_message(error, request_id),
            "description": error.description,
        }


def no_provider(provider: str) -> ApiError:
    """Return the error for a provider other than workers-ai: 400/2008."""
    return ApiError(
        400,
        2008,
        f"The provider {provider[:100]!r} is not served here: a gateway of this server has {WORKERS_AI} alone",
    )


async def gateway_url(request: Request) -> Response:
    """GET /ai-gateway/gateways/{gateway}/url/{provider}: return the address of the gateway's provider.

    Raises:
        ApiError: 400/2008 for a provider other than workers-ai and universal.
    """
    provider = request.path_params["provider"]
    if provider not in (WORKERS_AI, UNIVERSAL):
        raise no_provider(provider)
    host, port = request.scope["server"]
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    account = request.scope["state"].get("account") or _NO_ACCOUNT
    url = f"http://{address}{GATEWAY_PATH}/{account}/{request.path_params['gateway']}"
    return JSONResponse(envelope({"url": url if provider == UNIVERSAL else f"{url}/{provider}"}))


async def no_logs(request: Request) -> Response:
    """Refuse to read or change a gateway's log: 404/7000. The runtime raises AiGatewayLogNotFound."""
    raise ApiError(404, 7000, "Tailrace keeps no logs of gateways: its own log has the requests by their cf-ai-req-id")


async def no_search(request: Request) -> Response:
    """Refuse AutoRAG (AI Search): 404/7000. The runtime raises AutoRAGNotFoundError, or AutoRAGInternalError for a list."""
    raise ApiError(404, 7000, "AutoRAG (AI Search) is not served here: embed and search the documents yourself")


async def no_markdown(request: Request) -> Response:
    """Refuse to convert files to Markdown: 400/7000. The runtime raises AiInternalError."""
    raise ApiError(400, 7000, "toMarkdown is not served here: convert the files before, and send their text")


async def no_markdown_formats(request: Request) -> Response:
    """GET /to-everything/markdown/supported: return an empty list. The runtime expects a list here, not an error."""
    return JSONResponse(envelope([]))


async def no_websocket(request: Request) -> Response:
    """Refuse a run over a WebSocket: 400/5006. The Worker receives this response instead of a socket.

    Raises:
        HTTPException: 405 for a GET that does not request a WebSocket.
    """
    # miniflare drops the header `Upgrade`. Its requests have the inputs in the query parameter `body`.
    if "upgrade" not in request.headers and "body" not in request.query_params:
        raise HTTPException(405)
    raise ApiError(
        400, 5006, "Bad input: Error: the option 'websocket' is for audio models: use stream for a reply in pieces"
    )
