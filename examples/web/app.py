"""The Worker's part, played on this machine: two pages, and an endpoint that passes a model's event stream on to them.

`python -m examples.web.app`, then open the address it prints. A Worker does the same in three lines; here its
`ai.run(model, { prompt, stream: true })` is a call of the bridge's REST API.

    WEB_ADDRESS             where this server listens; 127.0.0.1:8788 if unset
    MODEL                   which model answers
    TAILRACE_HTTP_ADDRESS   where the bridge listens; 127.0.0.1:8787 if unset
    TAILRACE_TOKEN          one of the bridge's API tokens; if it has none, any will do
"""

import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypedDict
from urllib.parse import quote

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

DEFAULT_MODEL = "@cf/meta/llama-2-7b-chat-int8"
FOLDER = Path(__file__).parent
# What a page may decide; everything else of the request is this server's business.
FIELDS = ("prompt", "seed", "max_tokens")
# A reply takes as long as it takes; only a bridge that is not there is noticed by the clock.
TIMEOUT = httpx.Timeout(None, connect=5.0)


class State(TypedDict):
    """What the lifespan shares with every request."""

    client: httpx.AsyncClient


def create_app(run_url: str, token: str) -> Starlette:
    """run_url: the bridge's address of the model that answers."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[State]:
        # The stream is passed on as it is, so it must not be compressed on the way here.
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
        return PassedOn(upstream)

    return Starlette(
        routes=[
            Route("/", _file("eventsource.html")),
            Route("/fetch", _file("fetch.html")),
            Route("/style.css", _file("style.css")),
            Route("/worker-endpoint", worker_endpoint, methods=["GET", "POST"]),
        ],
        lifespan=lifespan,
    )


class PassedOn(StreamingResponse):
    """The upstream's event stream, byte for byte; the upstream is closed however this ends."""

    def __init__(self, upstream: httpx.Response) -> None:
        # Given as a header, not as media_type, to which Starlette would add a charset.
        super().__init__(_chunks(upstream), headers={"content-type": "text/event-stream"})
        self._upstream = upstream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            # Starlette stops sending when the browser leaves. The bridge learns it from this, and cancels the run.
            await self._upstream.aclose()


async def _chunks(upstream: httpx.Response) -> AsyncIterator[bytes]:
    try:
        async for chunk in upstream.aiter_raw():
            yield chunk
    except httpx.HTTPError:
        # The bridge is gone. A stream that ends without [DONE] says so to the page.
        return


async def _fields(request: Request) -> dict[str, object]:
    """The fields for the bridge, which checks them. Raises ValueError if a body is no JSON object."""
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
