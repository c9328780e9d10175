"""The routes of the Worker binding, and the listener that serves only them. The table of all routes is in table.py."""

from collections.abc import Callable, Sequence

from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Receive, Scope, Send

from http_bridge.api.binding.embeddings import BindingEmbeddingParser
from http_bridge.api.binding.gateway import (
    GATEWAY_PATH,
    WORKERS_AI,
    GatewayErrors,
    gateway_url,
    no_logs,
    no_markdown,
    no_markdown_formats,
    no_search,
    no_websocket,
)
from http_bridge.api.binding.requests import BindingParser
from http_bridge.api.binding.unwrap import Binding, Endpoint, Miniflare
from http_bridge.api.reply_writer import ErrorWriter
from http_bridge.api.workers_ai import embeddings
from http_bridge.api.workers_ai.models import search_models_for_worker
from http_bridge.api.workers_ai.replies import BindingErrors
from http_bridge.api.workers_ai.requests import RestParser
from http_bridge.endpoints.gateway import Inner, ProviderEndpoint, UniversalEndpoint
from http_bridge.error_handlers import WithErrorFormat
from http_bridge.observability.request_log import request_log
from http_bridge.protocol.reply_schemas import ENVELOPE
from http_bridge.protocol.run_schemas import STEPS, with_batches
from http_bridge.protocol.schemas import Schema
from http_bridge.routes.embeddings import any_task, run_input
from http_bridge.routes.spec import Endpoint as HttpEndpoint
from http_bridge.routes.spec import RouteSpec, Services, as_asgi
from http_bridge.site.openapi import header

_LABEL = "binding"
_GATEWAY = "/ai-gateway/gateways/{gateway}"
_UNIVERSAL_PATHS = ("/ai-gateway/universal/run/{gateway}", f"{GATEWAY_PATH}/{{account}}/{{gateway}}")
_OPENAI_PREFIX = "/v1/"


class BindingListener(BaseRoute):
    """The route of every request that arrives at the listener of the Worker binding. These requests need no token."""

    errors = BindingErrors()

    def __init__(self, port: int, services: Services, routes: Sequence[RouteSpec]) -> None:
        """Serve `routes` on this port."""
        binding = binding_app(services, routes)
        self._port = port
        self._app = WithErrorFormat(Miniflare(binding, binding), self.errors)

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Match by the port of the listener."""
        server = scope.get("server")
        return (Match.FULL, {}) if server is not None and server[1] == self._port else (Match.NONE, {})

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the binding."""
        request_log(scope).enter("binding")
        await self._app(scope, receive, send)


def binding_app(services: Services, routes: Sequence[RouteSpec]) -> ASGIApp:
    """Return the application that serves the binding's routes, regardless of the host that a request names."""
    return Binding(
        [Endpoint(method, spec.path, _formatted(spec, services)) for spec in routes for method in spec.methods]
    )


def miniflare_app(services: Services, routes: Sequence[RouteSpec]) -> ASGIApp:
    """Return the application that serves the binding's routes to miniflare, and answers 404 to other clients."""
    return Miniflare(WithErrorFormat(binding_app(services, routes), BindingErrors()), _nowhere)


def is_binding_path(routes: Sequence[RouteSpec]) -> Callable[[str], bool]:
    """Return a function that returns True for the paths of the binding's routes."""
    binding = Binding([Endpoint(method, spec.path, _nowhere) for spec in routes for method in spec.methods])
    return binding.has_path


def binding_routes(openai: Sequence[RouteSpec]) -> tuple[RouteSpec, ...]:
    """Return the routes of the Worker binding. `openai`: OpenAI's routes below /v1, which a gateway serves too."""
    return (
        _run_route("/run"),
        _run_route("/ai-gateway/run"),
        _other("/run", no_websocket, BindingErrors()),
        RouteSpec(
            label=_LABEL,
            path="/ai-api/models/search",
            endpoint=as_asgi(search_models_for_worker),
            errors=GatewayErrors(),
            summary="Models, for a Worker",
            reply_schema=ENVELOPE,
        ),
        *(_universal(path, openai) for path in _UNIVERSAL_PATHS),
        RouteSpec(
            label=_LABEL,
            path=f"{GATEWAY_PATH}/{{account}}/{{gateway}}/{WORKERS_AI}/{{endpoint:name}}",
            endpoint=lambda services: ProviderEndpoint(_inner(services, openai)),
            methods=("POST",),
            errors=GatewayErrors(),
        ),
        _other(f"{_GATEWAY}/url/{{provider}}", gateway_url),
        _other(f"{_GATEWAY}/logs/{{log:name}}", no_logs, methods=("GET", "PATCH")),
        _other("/autorag/{rest:name}", no_search, methods=("GET", "POST")),
        _other("/to-everything/markdown/transformer", no_markdown, methods=("POST",)),
        _other("/to-everything/markdown/supported", no_markdown_formats),
    )


def _run_route(path: str) -> RouteSpec:
    tensors: Schema = {
        "type": "object",
        "properties": {"input": {"type": "array"}, "stream": {"type": "boolean"}},
    }
    return RouteSpec(
        label=_LABEL,
        path=path,
        endpoint=any_task(BindingParser(), BindingEmbeddingParser()),
        methods=("POST",),
        errors=BindingErrors(),
        summary="A Worker's env.AI.run",
        request_schema=lambda inputs: {
            "anyOf": [
                {
                    "type": "object",
                    "properties": {"inputs": with_batches(run_input(inputs)), "options": {"type": "object"}},
                },
                tensors,
            ]
        },
        parameters=(header("cf-consn-model-id", {"type": "string"}),),
    )


def _other(
    path: str, endpoint: HttpEndpoint, errors: ErrorWriter | None = None, methods: tuple[str, ...] = ("GET",)
) -> RouteSpec:
    return RouteSpec(
        label=_LABEL, path=path, endpoint=as_asgi(endpoint), methods=methods, errors=errors or GatewayErrors()
    )


def _universal(path: str, openai: Sequence[RouteSpec]) -> RouteSpec:
    return RouteSpec(
        label=_LABEL,
        path=path,
        endpoint=lambda services: UniversalEndpoint(services.settings, _inner(services, openai)),
        methods=("POST",),
        errors=GatewayErrors(),
        summary="Run the steps of a gateway",
        request_schema=lambda inputs: STEPS,
    )


def _inner(services: Services, openai: Sequence[RouteSpec]) -> Inner:
    paths = {
        spec.path.removeprefix(_OPENAI_PREFIX): _formatted(spec, services)
        for spec in openai
        if "POST" in spec.methods and "{" not in spec.path
    }
    return Inner(any_task(RestParser(), embeddings.RestEmbeddingParser())(services), paths)


def _formatted(spec: RouteSpec, services: Services) -> ASGIApp:
    app = spec.endpoint(services)
    return app if spec.errors is None else WithErrorFormat(app, spec.errors)


async def _nowhere(scope: Scope, receive: Receive, send: Send) -> None:
    raise HTTPException(404)
