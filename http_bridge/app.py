"""Creates the bridge's Starlette application: its middleware, its error handlers, and its lifespan."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypedDict

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Scope

from http_bridge.api.base import SKIPPED_TOOLS_HEADER
from http_bridge.auth.allowed_hosts import AllowedHosts, HostNames
from http_bridge.auth.bearer import TokenCheck
from http_bridge.auth.token_file import TokenFile
from http_bridge.batches.limits import Limits
from http_bridge.batches.queue import BatchQueue
from http_bridge.error_handlers import REQUEST_ID_HEADER, failed, refusal, refused, unrouted
from http_bridge.errors import PLAIN_HEADER, ApiError
from http_bridge.observability.metrics import Metrics
from http_bridge.observability.tracing.exporter import tracing_from_environment
from http_bridge.protocol.bodies.reader import BodyReader
from http_bridge.protocol.schemas import Inputs
from http_bridge.routes.binding import is_binding_path
from http_bridge.routes.spec import Services
from http_bridge.routes.table import BINDING_ROUTES, HEALTH_PATHS, LABELS, build_routes, error_format
from http_bridge.settings.bridge import Settings
from http_bridge.upstream.client import Upstream
from http_bridge.upstream.tls import Credentials


class State(TypedDict):
    """The objects that the lifespan shares with every request."""

    upstream: Upstream
    batches: BatchQueue


def create_app(settings: Settings, *, binding_port: int | None = None, metrics: Metrics | None = None) -> Starlette:
    """Return the application. Its lifespan opens and closes the connections to the inference servers.

    Args:
        settings: The bridge's settings.
        binding_port: Port of the listener that serves the Worker binding, and nothing else, without a token.
        metrics: Receives the route labels, and reports the inference servers and the batches.

    Raises:
        ConfigurationError: A file of tokens or certificates cannot be used, or OpenTelemetry's variables are invalid.
    """
    credentials = Credentials(settings)
    services = _services(settings)
    tracing = services.tracing
    if metrics is not None:
        metrics.add_routes(LABELS)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[State]:
        upstream = Upstream(settings.grpc_targets, credentials)
        await upstream.start()
        if metrics is not None:
            servers = upstream.servers
            metrics.watch_servers(lambda: servers.num_serving, lambda: len(servers.all))
        tracing.start()
        batches = BatchQueue(_batch_limits(settings), metrics)
        try:
            yield {"upstream": upstream, "batches": batches}
        finally:
            await batches.close()
            await upstream.close()
            await tracing.close()

    routes = build_routes(services, binding_port=binding_port)
    app = Starlette(
        routes=routes,
        middleware=[_allowed_hosts(settings, binding_port, routes), *_cors(settings)],
        # Starlette's types require handlers of Exception; each handler receives only its registered class.
        exception_handlers={HTTPException: unrouted, ApiError: refused, Exception: failed},
        lifespan=lifespan,
    )
    # A path with an additional slash is an unknown route, not a redirect.
    app.router.redirect_slashes = False
    return app


def _services(settings: Settings) -> Services:
    file = settings.api_tokens_file
    inputs = Inputs(max_messages=settings.max_messages, max_schema_depth=settings.max_schema_depth)
    return Services(
        settings=settings,
        check=TokenCheck(settings.api_tokens, None if file is None else TokenFile(file)),
        inputs=inputs,
        bodies=BodyReader(inputs),
        tracing=tracing_from_environment(),
    )


def _batch_limits(settings: Settings) -> Limits:
    return Limits(
        max_batches=settings.batches_max,
        max_requests=settings.batches_max_requests,
        max_bytes=settings.batches_max_bytes,
        keep_seconds=settings.batches_keep_seconds,
        timeout_seconds=settings.batches_timeout_seconds,
        parallel=settings.batches_parallel,
    )


def _allowed_hosts(settings: Settings, binding_port: int | None, routes: list[BaseRoute]) -> Middleware:
    def refuse(scope: Scope, error: ApiError) -> ASGIApp:
        return refusal(error, error_format(routes, scope))

    return Middleware(
        AllowedHosts,
        names=HostNames(settings.allowed_hosts),
        has_tokens=settings.has_tokens,
        binding_port=binding_port,
        open_paths=HEALTH_PATHS,
        is_binding_path=is_binding_path(BINDING_ROUTES),
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
            expose_headers=(REQUEST_ID_HEADER, "retry-after", PLAIN_HEADER, SKIPPED_TOOLS_HEADER),
        )
    ]
