"""The bridge as a Starlette application: which routes there are, and who may use them.

Knows which routes need credentials; knows nothing of runs.
"""

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypedDict

from starlette.applications import Starlette
from starlette.convertors import PathConvertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Match, request_response
from starlette.types import ASGIApp, Receive, Scope, Send

from http_bridge import error_handlers as refusals
from http_bridge.api.base import Surface
from http_bridge.api.binding.requests import BindingSurface
from http_bridge.api.binding.unwrap import Binding, Miniflare, Wrangler
from http_bridge.api.openai.replies import OpenAiErrors
from http_bridge.api.openai.requests import ChatSurface, CompletionSurface
from http_bridge.api.reply_writer import ErrorForm
from http_bridge.api.workers_ai import models as directory
from http_bridge.api.workers_ai.replies import BindingErrors
from http_bridge.api.workers_ai.requests import GenericSurface, RestSurface
from http_bridge.api.workers_ai.tokens import VerifyToken
from http_bridge.auth.allowed_hosts import AllowedHosts, HostNames
from http_bridge.auth.bearer import ACCOUNT_KEY, TokenCheck
from http_bridge.auth.token_file import TokenFile
from http_bridge.errors import ApiError
from http_bridge.observability.metrics import Metrics
from http_bridge.observability.request_log import Route, record_of
from http_bridge.observability.tracing.base import Tracing
from http_bridge.observability.tracing.exporter import tracing_from_environment
from http_bridge.protocol.run_body import BodyReader
from http_bridge.protocol.schemas import Inputs
from http_bridge.run_endpoint import REQUEST_ID_HEADER, RunEndpoint
from http_bridge.settings import Settings
from http_bridge.site import pages
from http_bridge.upstream.client import Upstream
from http_bridge.upstream.tls import Credentials

_API = "/client/v4"
_ACCOUNT = f"{_API}/accounts/{{account}}"
_ACCOUNT_ID = re.compile(r"[\w.-]{1,128}", re.ASCII)
# OpenAI's routes, at Cloudflare's place and where any OpenAI client looks for them.
_OPENAI_BASES = (f"{_ACCOUNT}/ai/v1", "/v1")
_NOT_SERVED = ("embeddings", "responses", "messages", "audio/speech", "audio/transcriptions", "images/generations")

_HEALTH_PATHS = frozenset({"/healthz", "/readyz"})
_BINDING_PATHS = frozenset({"/run", "/ai-gateway/run", "/ai-api/models/search"})


class _Name(PathConvertor):
    """The rest of a path, whatever it holds: a line end in a name is the name's fault and not the route's."""

    regex = r"[\s\S]*"


register_url_convertor("name", _Name())
_Endpoint = Callable[[Request], Awaitable[Response]]
# Makes the endpoint of a kind of route.
_Runs = Callable[[Surface], ASGIApp]


class State(TypedDict):
    """What the lifespan shares with every request."""

    upstream: Upstream


def create_app(settings: Settings, *, binding_port: int | None = None, metrics: Metrics | None = None) -> Starlette:
    """The application; its lifespan opens the way to the inference server and closes it.

    binding_port: of the listener on which the Worker binding is served, and nothing else, without a token. metrics: told
    which inference servers there are.
    Raises ConfigurationError if a file of tokens or certificates cannot be used, or traces cannot be sent as asked for.
    """

    credentials = Credentials(settings)
    tracing = tracing_from_environment()

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[State]:
        upstream = Upstream(settings.grpc_targets, credentials)
        await upstream.start()
        if metrics is not None:
            servers = upstream.servers
            metrics.watch_servers(lambda: servers.num_serving, lambda: len(servers.all))
        tracing.start()
        try:
            yield {"upstream": upstream}
        finally:
            await upstream.close()
            await tracing.close()

    routes = _routes(settings, binding_port, tracing)
    app = Starlette(
        routes=routes,
        middleware=[_allowed_hosts(settings, binding_port, routes), *_cors(settings)],
        # Starlette's types want handlers of Exception; each gets only what it is registered for.
        exception_handlers={HTTPException: refusals.unrouted, ApiError: refusals.refused, Exception: refusals.failed},
        lifespan=lifespan,
    )
    # A path with one slash too many is no route either.
    app.router.redirect_slashes = False
    return app


def _routes(settings: Settings, binding_port: int | None, tracing: Tracing) -> list[BaseRoute]:
    file = settings.api_tokens_file
    check = TokenCheck(settings.api_tokens, None if file is None else TokenFile(file))
    inputs = Inputs(max_messages=settings.max_messages, max_schema_depth=settings.max_schema_depth)
    bodies = BodyReader(inputs)

    def run(surface: Surface) -> ASGIApp:
        return tracing.around(RunEndpoint(settings, bodies, surface))

    binding = _binding(run(BindingSurface()))
    routes: list[BaseRoute] = []
    if binding_port is not None:
        routes.append(_OnPort(binding_port, _Speaking(Miniflare(binding, binding), BindingErrors())))
    # A route without a guard is public: keep these and the pages the only ones.
    routes += [Route("health", "/healthz", _healthz), Route("health", "/readyz", _readyz)]
    routes += _binding_routes(binding, check)
    routes += _workers_ai_routes(run, inputs, check)
    for base in _OPENAI_BASES:
        routes += _openai_routes(run, check, base)
    return routes + pages.routes(inputs)


def _workers_ai_routes(run: _Runs, inputs: Inputs, check: TokenCheck) -> list[BaseRoute]:
    def guarded(app: ASGIApp) -> ASGIApp:
        return _Guarded(app, check)

    verify = _Answering(VerifyToken(check))  # it looks at the credentials itself
    return [
        Route("run", f"{_ACCOUNT}/ai/run", guarded(run(GenericSurface())), methods=["POST"]),
        Route("run", f"{_ACCOUNT}/ai/run/{{model:name}}", guarded(run(RestSurface())), methods=["POST"]),
        Route("models", f"{_ACCOUNT}/ai/models/search", guarded(_Answering(directory.search_models)), methods=["GET"]),
        Route(
            "models",
            f"{_ACCOUNT}/ai/models/schema",
            guarded(_Answering(directory.ModelSchema(inputs))),
            methods=["GET"],
        ),
        Route("models", f"{_ACCOUNT}/ai/tasks/search", guarded(_Answering(directory.search_tasks)), methods=["GET"]),
        Route(
            "models", f"{_ACCOUNT}/ai/authors/search", guarded(_Answering(directory.search_authors)), methods=["GET"]
        ),
        Route("other", f"{_ACCOUNT}/tokens/verify", verify, methods=["GET"]),
        Route("other", f"{_API}/user/tokens/verify", verify, methods=["GET"]),
    ]


def _openai_routes(run: _Runs, check: TokenCheck, base: str) -> list[BaseRoute]:
    def guarded(app: ASGIApp) -> ASGIApp:
        return _Speaking(_Guarded(app, check), OpenAiErrors())

    return [
        Route("chat_completions", f"{base}/chat/completions", guarded(run(ChatSurface())), methods=["POST"]),
        Route("completions", f"{base}/completions", guarded(run(CompletionSurface())), methods=["POST"]),
        Route("models", f"{base}/models", guarded(_Answering(directory.openai_models)), methods=["GET"]),
        Route("models", f"{base}/models/{{model:name}}", guarded(_Answering(directory.openai_model)), methods=["GET"]),
        *(Route("other", f"{base}/{name}", guarded(_Answering(_not_served)), methods=["POST"]) for name in _NOT_SERVED),
    ]


def _binding(run: ASGIApp) -> ASGIApp:
    return Binding(
        {
            ("POST", "/run"): run,
            ("POST", "/ai-gateway/run"): run,
            ("GET", "/ai-api/models/search"): _Answering(directory.search_models),
        }
    )


def _binding_routes(binding: ASGIApp, check: TokenCheck) -> list[BaseRoute]:
    def guarded(app: ASGIApp) -> ASGIApp:
        return _Speaking(_Guarded(app, check), BindingErrors())

    direct = guarded(binding)
    return [
        Route("binding", "/run", direct, methods=["POST"]),
        Route("binding", "/ai-gateway/run", direct, methods=["POST"]),
        Route("binding", "/ai-api/models/search", direct, methods=["GET"]),
        Route(
            "binding", "/", _Guarded(Miniflare(_Speaking(binding, BindingErrors()), _nowhere), check), methods=["POST"]
        ),
        Route("binding", f"{_ACCOUNT}/ai/run/proxy", guarded(Wrangler(binding)), methods=["GET", "POST"]),
    ]


def _allowed_hosts(settings: Settings, binding_port: int | None, routes: list[BaseRoute]) -> Middleware:
    def refuse(scope: Scope, error: ApiError) -> ASGIApp:
        route = next((route for route in routes if route.matches(scope)[0] is Match.FULL), None)
        app = getattr(route, "app", None)
        return refusals.answering(error, app.errors if isinstance(app, _Speaking) else None)

    return Middleware(
        AllowedHosts,
        names=HostNames(settings.allowed_hosts),
        has_tokens=bool(settings.api_tokens) or settings.api_tokens_file is not None,
        binding_port=binding_port,
        open_paths=_HEALTH_PATHS,
        binding_paths=_BINDING_PATHS,
        refuse=refuse,
    )


def _cors(settings: Settings) -> list[Middleware]:
    if not settings.cors_origins:
        return []
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=("GET", "POST"),
            allow_headers=("*",),
            expose_headers=(REQUEST_ID_HEADER, "retry-after"),
        )
    ]


class _Guarded:
    """Lets a request through to `app` if its credentials pass and its account can be one."""

    def __init__(self, app: ASGIApp, check: TokenCheck) -> None:
        self._app = app
        self._check = check

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        account = scope["path_params"].get("account")
        scope["state"][ACCOUNT_KEY] = self._check.check(scope["headers"], account)
        if account is not None and not _ACCOUNT_ID.fullmatch(account):
            path = scope["path"]
            raise ApiError(404, 7003, f"Could not route to {path:.200}, perhaps your object identifier is invalid?")
        await self._app(scope, receive, send)


class _Speaking:
    """Has errors on the way to `app` written in the form of its route."""

    def __init__(self, app: ASGIApp, errors: ErrorForm) -> None:
        self._app = app
        self.errors = errors

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["state"][refusals.ERRORS_KEY] = self.errors
        await self._app(scope, receive, send)


class _OnPort(BaseRoute):
    """Everything that comes in by one listener."""

    def __init__(self, port: int, app: ASGIApp) -> None:
        self._port = port
        self.app = app

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        server = scope.get("server")
        return (Match.FULL, {}) if server is not None and server[1] == self._port else (Match.NONE, {})

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        record_of(scope).enter("binding")
        await self.app(scope, receive, send)


class _Answering:
    """An endpoint as an ASGI application that is no function, which Starlette would take for an endpoint again."""

    def __init__(self, endpoint: _Endpoint) -> None:
        self._app = request_response(endpoint)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)


async def _nowhere(scope: Scope, receive: Receive, send: Send) -> None:
    raise HTTPException(404)


async def _healthz(request: Request) -> Response:
    return JSONResponse({"status": "ok"})


async def _readyz(request: Request) -> Response:
    upstream: Upstream = request.state.upstream
    reason = await upstream.why_not_ready()
    if reason is None:
        return JSONResponse({"status": "ready"})
    return JSONResponse({"status": "not ready", "reason": reason}, 503)


async def _not_served(request: Request) -> Response:
    name = request.url.path.partition("/v1/")[2]
    raise ApiError(400, 7000, f"No route for that URI: {name} is not served here, only text generation is")
