"""Serves two pages, and an endpoint that forwards a model's event stream to them, as a Worker would.

`python -m examples.web.app`, then open the address it prints. A Worker does the same in three lines; here its
`ai.run(model, { prompt, stream: true })` is a call of the bridge's REST API.

    WEB_ADDRESS             address of this server; 127.0.0.1:8788 if unset
    MODEL                   name of the model
    TAILRACE_HTTP_ADDRESS   address of the bridge; 127.0.0.1:8787 if unset
    TAILRACE_TOKEN          an API token of the bridge; any text if it has no tokens
"""

import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypedDict
from urllib.parse import quote

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

try:
    import httpx
except ModuleNotFoundError:
    raise SystemExit(
        "The web app needs httpx, which `make run` does not install. Install it with `make install`."
    ) from None

DEFAULT_MODEL = "@cf/meta/llama-2-7b-chat-int8"
FOLDER = Path(__file__).parent
# Fields that a page may set. This server sets all others.
FIELDS = ("prompt", "seed", "max_tokens")
# Replies may take any time. Only connecting to the bridge has a timeout.
TIMEOUT = httpx.Timeout(None, connect=5.0)


class State(TypedDict):
    """State that the lifespan shares with every request."""

    client: httpx.AsyncClient


def create_app(run_url: str, token: str) -> Starlette:
    """Return the app. `run_url` is the bridge's URL that runs the model."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[State]:
        # The stream is forwarded unchanged, so the bridge must not compress it.
        headers = {"authorization": f"Bearer {token}", "accept-encoding": "identity"}
        async with httpx.AsyncClient(headers=headers, timeout=TIMEOUT, trust_env=False) as client:
            yield {"client": client}

    async def worker_endpoint(request: Request) -> Response:
        try:
            body = await _fields(request)
        except ValueError:
            return _error(400, "The body must be a JSON object.")
        client: httpx.AsyncClient = request.state.client
        upstream_request = client.build_request("POST", run_url, json={**body, "stream": True})
        try:
            upstream = await client.send(upstream_request, stream=True)
            if upstream.is_error:
                content = await upstream.aread()
                headers = {"content-type": upstream.headers.get("content-type", "application/json")}
                return Response(content, upstream.status_code, headers)
        except httpx.HTTPError:
            return _error(502, f"The bridge at {upstream_request.url.netloc.decode()} does not answer.")
        return ForwardedStream(upstream)

    return Starlette(
        routes=[
            Route("/", _file("eventsource.html")),
            Route("/fetch", _file("fetch.html")),
            Route("/style.css", _file("style.css")),
            Route("/worker-endpoint", worker_endpoint, methods=["GET", "POST"]),
        ],
        lifespan=lifespan,
    )


class ForwardedStream(StreamingResponse):
    """The upstream's event stream, byte for byte. Always closes the upstream at its end."""

    def __init__(self, upstream: httpx.Response) -> None:
        # The content type is a header, because Starlette would add a charset to media_type. The other headers keep proxies
        # from buffering events.
        headers = {"content-type": "text/event-stream", "x-accel-buffering": "no"}
        super().__init__(_chunks(upstream), headers={**headers, "cache-control": "no-cache, no-transform"})
        self._upstream = upstream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            # Starlette stops sending when the browser disconnects. Closing the upstream makes the bridge cancel the run.
            await self._upstream.aclose()


async def _chunks(upstream: httpx.Response) -> AsyncIterator[bytes]:
    try:
        async for chunk in upstream.aiter_raw():
            yield chunk
    except httpx.HTTPError:
        # The connection to the bridge is lost. The page detects that the stream ends without [DONE].
        return


async def _fields(request: Request) -> dict[str, object]:
    """Return the fields for the bridge, which validates them. Raises ValueError if a body is not a JSON object."""
    given: Mapping[str, object]
    if request.method == "POST":
        given = json.loads(await request.body())
        if not isinstance(given, dict):
            raise ValueError
    else:
        query = request.query_params
        given = {name: int(text) if name != "prompt" and text.isdecimal() else text for name, text in query.items()}
    return {name: given[name] for name in FIELDS if name in given}


def _error(status: int, message: str) -> Response:
    return JSONResponse({"success": False, "errors": [{"message": message}]}, status)


def _file(name: str) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        return FileResponse(FOLDER / name)

    return endpoint


def main() -> None:
    address = os.environ.get("WEB_ADDRESS") or "127.0.0.1:8788"
    bridge = os.environ.get("TAILRACE_HTTP_ADDRESS") or "127.0.0.1:8787"
    model = quote(os.environ.get("MODEL") or DEFAULT_MODEL, safe="/@")
    app = create_app(
        f"http://{bridge}/client/v4/accounts/local/ai/run/{model}",
        token=os.environ.get("TAILRACE_TOKEN") or "any-token",
    )
    host, _, port = address.rpartition(":")
    print(f"EventSource: http://{address}/\nfetch:       http://{address}/fetch", flush=True)
    uvicorn.run(app, host=host.strip("[]"), port=int(port), log_level="warning", timeout_graceful_shutdown=1)


if __name__ == "__main__":
    main()
