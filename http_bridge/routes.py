"""The table of all routes. Each route is written once, as one RouteSpec.

The table produces Starlette's routes (`build_routes`), the OpenAPI description (`description`) and the route labels of the
metrics (`LABELS`).
"""

from starlette.convertors import PathConvertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Receive, Scope, Send

from http_bridge.api.base import RequestParser
from http_bridge.api.binding.requests import BindingParser
from http_bridge.api.binding.unwrap import Binding, Miniflare, Wrangler
from http_bridge.api.embeddings import workers_ai as embeddings
from http_bridge.api.health import healthz, readyz
from http_bridge.api.openai.models import openai_model, openai_models
from http_bridge.api.openai.replies import OpenAiErrors
from http_bridge.api.openai.requests import ChatParser, CompletionParser
from http_bridge.api.reply_writer import ErrorWriter
from http_bridge.api.workers_ai.models import ModelSchema, search_authors, search_models, search_tasks
from http_bridge.api.workers_ai.replies import BindingErrors
from http_bridge.api.workers_ai.requests import GenericParser, RestParser
from http_bridge.api.workers_ai.tokens import VerifyToken
from http_bridge.embedding_routes import any_reply, any_task, embeddings_route, run_input
from http_bridge.error_handlers import WithErrorFormat
from http_bridge.errors import ApiError
from http_bridge.observability.request_log import OTHER_ROUTE, request_log
from http_bridge.protocol.reply_schemas import ENVELOPE, OPENAI_REPLY, RUN_ENVELOPE
from http_bridge.protocol.schemas import Inputs, Schema
from http_bridge.route_spec import Endpoint, EndpointApp, LabeledRoute, MakeApp, RouteSpec, Services, as_asgi
from http_bridge.run_endpoint import RunEndpoint
from http_bridge.site.openapi import document, header, query
from http_bridge.site.pages import pages

_API = "/client/v4"
_ACCOUNT = f"{_API}/accounts/{{account}}"
_NOT_SERVED = ("responses", "messages", "audio/speech", "audio/transcriptions", "images/generations")
_PAGE_PARAMETERS = tuple(
    query(name, {"type": "integer", "minimum": 1, "maximum": 1000}) for name in ("page", "per_page")
)
_TEXT: Schema = {"type": "string"}


class BindingListener(BaseRoute):
    """The route of every request that arrives at the listener of the Worker binding. These requests need no token."""

    errors = BindingErrors()

    def __init__(self, port: int, services: Services) -> None:
        binding = _binding(services)
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


class _NameConvertor(PathConvertor):
    """Convertor that matches the rest of a path, including line ends, which make the model's name invalid."""

    regex = r"[\s\S]*"


register_url_convertor("name", _NameConvertor())


def _run(parser: RequestParser) -> MakeApp:
    return lambda services: services.tracing.around(RunEndpoint(services.settings, services.bodies, parser))


async def _nowhere(scope: Scope, receive: Receive, send: Send) -> None:
    raise HTTPException(404)


async def _not_served(request: Request) -> Response:
    name = request.url.path.partition("/v1/")[2]
    raise ApiError(400, 7000, f"No route for that URI: {name} is not served here, only text generation is")


def _openapi(services: Services) -> ASGIApp:
    described = description(services.inputs)

    async def answer(request: Request) -> Response:
        return JSONResponse(described)

    return EndpointApp(answer)


def _binding(services: Services) -> ASGIApp:
    return Binding(
        {(method, spec.path): spec.endpoint(services) for spec in _BINDING_ROUTES for method in spec.methods}
    )


def _miniflare(services: Services) -> ASGIApp:
    return Miniflare(WithErrorFormat(_binding(services), BindingErrors()), _nowhere)


def _search(path: str, endpoint: Endpoint, summary: str, *filters: str) -> RouteSpec:
    return RouteSpec(
        label="models",
        path=f"{_ACCOUNT}/ai/{path}",
        endpoint=as_asgi(endpoint),
        summary=summary,
        reply_schema=ENVELOPE,
        parameters=(*_PAGE_PARAMETERS, *(query(name, _TEXT) for name in filters)),
    )


def _verify(path: str) -> RouteSpec:
    return RouteSpec(
        label=OTHER_ROUTE,
        path=path,
        endpoint=lambda services: EndpointApp(VerifyToken(services.check)),
        guard="endpoint",
        summary="Verify the token",
        reply_schema=ENVELOPE,
    )


_WORKERS_AI_ROUTES = (
    # Wrangler 3's proxy of the binding. It must precede the route of a model, whose pattern matches too.
    RouteSpec(
        label="binding",
        path=f"{_ACCOUNT}/ai/run/proxy",
        endpoint=lambda services: Wrangler(_binding(services)),
        methods=("GET", "POST"),
        errors=BindingErrors(),
    ),
    RouteSpec(
        label="run",
        path=f"{_ACCOUNT}/ai/run/{{model:name}}",
        endpoint=any_task(RestParser(), embeddings.RestEmbeddingParser()),
        methods=("POST",),
        summary="Run a model",
        request_schema=run_input,
        reply_schema=any_reply(RUN_ENVELOPE),
    ),
    RouteSpec(
        label="run",
        path=f"{_ACCOUNT}/ai/run",
        endpoint=any_task(GenericParser(), embeddings.GenericEmbeddingParser()),
        methods=("POST",),
        summary="Run the model that the body names",
        request_schema=lambda inputs: inputs.generic,
        reply_schema=any_reply(RUN_ENVELOPE),
    ),
    _search("models/search", search_models, "Models", "author", "task", "search", "source"),
    _search("tasks/search", search_tasks, "Tasks"),
    _search("authors/search", search_authors, "Authors"),
    RouteSpec(
        label="models",
        path=f"{_ACCOUNT}/ai/models/schema",
        endpoint=lambda services: EndpointApp(ModelSchema(services.inputs)),
        summary="JSON Schemas of a model's input and output",
        reply_schema=ENVELOPE,
        parameters=(query("model", _TEXT, required=True),),
    ),
    _verify(f"{_ACCOUNT}/tokens/verify"),
    _verify(f"{_API}/user/tokens/verify"),
)


def _binding_run(path: str) -> RouteSpec:
    tensors = {"type": "object", "properties": {"input": {"type": "array"}, "stream": {"type": "boolean"}}}
    return RouteSpec(
        label="binding",
        path=path,
        endpoint=any_task(BindingParser(), embeddings.BindingEmbeddingParser()),
        methods=("POST",),
        errors=BindingErrors(),
        summary="A Worker's env.AI.run",
        request_schema=lambda inputs: {
            "anyOf": [
                {"type": "object", "properties": {"inputs": run_input(inputs), "options": {"type": "object"}}},
                tensors,
            ]
        },
        parameters=(header("cf-consn-model-id", _TEXT),),
    )


_BINDING_ROUTES = (
    _binding_run("/run"),
    _binding_run("/ai-gateway/run"),
    RouteSpec(
        label="binding",
        path="/ai-api/models/search",
        endpoint=as_asgi(search_models),
        errors=BindingErrors(),
        summary="Models, for a Worker",
        reply_schema=ENVELOPE,
    ),
)


def _openai_list(path: str, endpoint: Endpoint, summary: str) -> RouteSpec:
    return RouteSpec(label="models", path=path, endpoint=as_asgi(endpoint), errors=OpenAiErrors(), summary=summary)


def _openai_routes(base: str) -> tuple[RouteSpec, ...]:
    errors = OpenAiErrors()
    return (
        RouteSpec(
            label="chat_completions",
            path=f"{base}/chat/completions",
            endpoint=_run(ChatParser()),
            methods=("POST",),
            errors=errors,
            summary="Chat",
            request_schema=lambda inputs: inputs.chat,
            reply_schema=OPENAI_REPLY,
        ),
        RouteSpec(
            label="completions",
            path=f"{base}/completions",
            endpoint=_run(CompletionParser()),
            methods=("POST",),
            errors=errors,
            summary="Continue a text",
            request_schema=lambda inputs: inputs.completion,
            reply_schema=OPENAI_REPLY,
        ),
        embeddings_route(base),
        _openai_list(f"{base}/models", openai_models, "Models"),
        _openai_list(f"{base}/models/{{model:name}}", openai_model, "One model"),
        *(
            RouteSpec(
                label=OTHER_ROUTE,
                path=f"{base}/{name}",
                endpoint=as_asgi(_not_served),
                methods=("POST",),
                errors=errors,
            )
            for name in _NOT_SERVED
        ),
    )


_HEALTH_ROUTES = (
    RouteSpec(
        label="health",
        path="/healthz",
        endpoint=as_asgi(healthz),
        guard="none",
        summary="Liveness of the bridge",
        statuses={200: "The bridge runs"},
    ),
    RouteSpec(
        label="health",
        path="/readyz",
        endpoint=as_asgi(readyz),
        guard="none",
        summary="Readiness of the bridge",
        statuses={200: "An inference server serves", 503: "No inference server serves; `reason` is a sentence"},
    ),
)

# The first route that matches a request is used.
ROUTES: tuple[RouteSpec, ...] = (
    *_WORKERS_AI_ROUTES,
    *_HEALTH_ROUTES,
    *_BINDING_ROUTES,
    RouteSpec(label="binding", path="/", endpoint=_miniflare, methods=("POST",)),
    # OpenAI's routes: within Cloudflare's API, and at the path that OpenAI's clients use by default.
    *_openai_routes(f"{_ACCOUNT}/ai/v1"),
    *_openai_routes("/v1"),
    RouteSpec(label="pages", path="/openapi.json", endpoint=_openapi, guard="none"),
    *(RouteSpec(label="pages", path=path, endpoint=as_asgi(page), guard="none") for path, page in pages().items()),
)
LABELS = frozenset(spec.label for spec in ROUTES)
HEALTH_PATHS = frozenset(spec.path for spec in _HEALTH_ROUTES)
BINDING_PATHS = frozenset(spec.path for spec in _BINDING_ROUTES)


def build_routes(services: Services, *, binding_port: int | None = None) -> list[BaseRoute]:
    """Return Starlette's routes. `binding_port`: port of the listener that serves the Worker binding only."""
    listener = [] if binding_port is None else [BindingListener(binding_port, services)]
    return [*listener, *(spec.route(services) for spec in ROUTES)]


def description(inputs: Inputs) -> Schema:
    """Return the OpenAPI document of all routes with a summary."""
    return document(spec.operation(inputs) for spec in ROUTES if spec.summary)


def error_format(routes: list[BaseRoute], scope: Scope) -> ErrorWriter | None:
    """Return the error format of the request's route; None: the format of Cloudflare's router."""
    route = next((route for route in routes if route.matches(scope)[0] is Match.FULL), None)
    if isinstance(route, BindingListener):
        return route.errors
    return route.spec.errors if isinstance(route, LabeledRoute) else None
