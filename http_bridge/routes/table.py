"""The table of all routes. Each route is defined once, as one RouteSpec.

The table produces Starlette's routes (`build_routes`), the OpenAPI description (`description`) and the route labels of the
metrics (`LABELS`).
"""

from dataclasses import replace

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Scope

from http_bridge.api.base import RequestParser
from http_bridge.api.binding.unwrap import MINIFLARE_URL, Wrangler
from http_bridge.api.health import healthz, readyz
from http_bridge.api.openai.errors import OpenAiErrors
from http_bridge.api.openai.models import openai_model, openai_models
from http_bridge.api.openai.requests import ChatParser, CompletionParser
from http_bridge.api.reply_writer import ErrorWriter
from http_bridge.api.responses.errors import ResponsesErrors
from http_bridge.api.responses.requests import ResponsesParser
from http_bridge.api.responses.stored import not_stored
from http_bridge.api.workers_ai import embeddings
from http_bridge.api.workers_ai.models import ModelSchema, search_authors, search_models, search_tasks
from http_bridge.api.workers_ai.replies import BindingErrors
from http_bridge.api.workers_ai.requests import GenericParser, RestParser
from http_bridge.api.workers_ai.tokens import VerifyToken, list_accounts
from http_bridge.endpoints.run import RunEndpoint
from http_bridge.errors import ApiError
from http_bridge.observability.request_log import OTHER_ROUTE
from http_bridge.protocol.reply_schemas import ENVELOPE, MODELS_REPLY, OPENAI_REPLY, RESPONSE, RUN_ENVELOPE
from http_bridge.protocol.run_schemas import with_batches
from http_bridge.protocol.schemas import Inputs, Schema
from http_bridge.routes.binding import BindingListener, binding_app, binding_routes, miniflare_app
from http_bridge.routes.embeddings import any_reply, any_task, embeddings_route, run_input
from http_bridge.routes.spec import Endpoint, EndpointApp, LabeledRoute, MakeApp, RouteSpec, Services, as_asgi
from http_bridge.site.openapi import document, query
from http_bridge.site.pages import pages

_API = "/client/v4"
_ACCOUNT = f"{_API}/accounts/{{account}}"
_NOT_SERVED = ("messages", "audio/speech", "audio/transcriptions", "images/generations")
_PAGE_PARAMETERS = tuple(
    query(name, {"type": "integer", "minimum": 1, "maximum": 1000}) for name in ("page", "per_page")
)
_TEXT: Schema = {"type": "string"}


def _run(parser: RequestParser) -> MakeApp:
    return lambda services: services.tracing.around(RunEndpoint(services.settings, services.bodies, parser))


async def _not_served(request: Request) -> Response:
    name = request.url.path.partition("/v1/")[2]
    raise ApiError(400, 7000, f"No route for that URI: {name} is not served here")


def _openapi(services: Services) -> ASGIApp:
    described = description(services.inputs)

    async def answer(request: Request) -> Response:
        return JSONResponse(described)

    return EndpointApp(answer)


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
        endpoint=lambda services: Wrangler(binding_app(services, BINDING_ROUTES)),
        methods=("GET", "POST", "PATCH"),
        errors=BindingErrors(),
    ),
    RouteSpec(
        label="run",
        path=f"{_ACCOUNT}/ai/run/{{model:name}}",
        endpoint=any_task(RestParser(), embeddings.RestEmbeddingParser()),
        methods=("POST",),
        summary="Run a model",
        request_schema=lambda inputs: with_batches(run_input(inputs)),
        reply_schema=any_reply(RUN_ENVELOPE),
        parameters=(query("queueRequest", {"type": "boolean"}),),
    ),
    RouteSpec(
        label="run",
        path=f"{_ACCOUNT}/ai/run",
        endpoint=any_task(GenericParser(), embeddings.GenericEmbeddingParser()),
        methods=("POST",),
        summary="Run the model that the body names",
        request_schema=lambda inputs: {"anyOf": [inputs.generic, inputs.responses]},
        reply_schema=any_reply(RUN_ENVELOPE),
    ),
    replace(
        _search("models/search", search_models, "Models", "author", "task", "search", "source", "format"),
        reply_schema=MODELS_REPLY,
    ),
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
    RouteSpec(
        label=OTHER_ROUTE,
        path=f"{_API}/accounts",
        endpoint=as_asgi(list_accounts),
        summary="List the token's accounts",
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
        RouteSpec(
            label="responses",
            path=f"{base}/responses",
            endpoint=_run(ResponsesParser()),
            methods=("POST",),
            errors=ResponsesErrors(),
            summary="Respond",
            request_schema=lambda inputs: inputs.responses,
            reply_schema=RESPONSE,
        ),
        RouteSpec(
            label=OTHER_ROUTE,
            path=f"{base}/responses/{{response:path}}",
            endpoint=as_asgi(not_stored),
            methods=("GET", "DELETE", "POST"),
            errors=ResponsesErrors(),
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

_OPENAI_ROUTES = _openai_routes("/v1")
BINDING_ROUTES: tuple[RouteSpec, ...] = binding_routes(_OPENAI_ROUTES)
# The first route that matches a request is used.
ROUTES: tuple[RouteSpec, ...] = (
    *_WORKERS_AI_ROUTES,
    *_HEALTH_ROUTES,
    *BINDING_ROUTES,
    RouteSpec(
        label="binding",
        path="/",
        endpoint=lambda services: miniflare_app(services, BINDING_ROUTES),
        methods=("POST",),
    ),
    # Without miniflare's header, GET / is the playground.
    RouteSpec(
        label="binding",
        path="/",
        endpoint=lambda services: miniflare_app(services, BINDING_ROUTES),
        methods=("GET", "PATCH"),
        needs_header=MINIFLARE_URL,
    ),
    # OpenAI's routes: within Cloudflare's API, and at the path that OpenAI's clients use by default.
    *(replace(spec, ignores_slashes=True) for spec in (*_openai_routes(f"{_ACCOUNT}/ai/v1"), *_OPENAI_ROUTES)),
    RouteSpec(label="pages", path="/openapi.json", endpoint=_openapi, guard="none"),
    *(RouteSpec(label="pages", path=path, endpoint=as_asgi(page), guard="none") for path, page in pages().items()),
)
LABELS = frozenset(spec.label for spec in ROUTES)
HEALTH_PATHS = frozenset(spec.path for spec in _HEALTH_ROUTES)


def build_routes(services: Services, *, binding_port: int | None = None) -> list[BaseRoute]:
    """Return Starlette's routes. `binding_port`: port of the listener that serves the Worker binding only."""
    listener = [] if binding_port is None else [BindingListener(binding_port, services, BINDING_ROUTES)]
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
