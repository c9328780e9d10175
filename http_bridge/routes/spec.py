"""The description of one route, and the Starlette route that is made from it. The table of routes is in table.py."""

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from starlette import routing
from starlette.convertors import PathConvertor, register_url_convertor
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, request_response
from starlette.types import ASGIApp, Receive, Scope, Send

from http_bridge.api.reply_writer import ErrorWriter
from http_bridge.auth.bearer import RequireToken, TokenCheck
from http_bridge.error_handlers import WithErrorFormat
from http_bridge.observability.request_log import request_log
from http_bridge.observability.tracing.base import NullTracing
from http_bridge.protocol.bodies.reader import BodyReader
from http_bridge.protocol.reply_schemas import ANY_OBJECT, REST_ERROR
from http_bridge.protocol.schemas import Inputs, Schema
from http_bridge.settings.bridge import Settings
from http_bridge.site.openapi import Operation

Endpoint = Callable[[Request], Awaitable[Response]]
_SLASHES = re.compile("/{2,}")


class _NameConvertor(PathConvertor):
    """Matches the rest of a path, including line breaks, so that the parser can refuse a model name with them."""

    regex = r"[\s\S]*"


register_url_convertor("name", _NameConvertor())


@dataclass(frozen=True, slots=True)
class Services:
    """The shared objects from which endpoints are created."""

    settings: Settings
    check: TokenCheck
    inputs: Inputs
    bodies: BodyReader
    tracing: NullTracing


# Makes the ASGI application of an endpoint.
MakeApp = Callable[[Services], ASGIApp]


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteSpec:
    """The description of one route.

    Attributes:
        label: Label of the route in metrics and log lines; never a path, because the number of paths is unlimited.
        path: Path in Starlette's notation.
        endpoint: Makes the endpoint's ASGI application.
        methods: HTTP methods. HEAD is added to GET.
        guard: "token" checks the token before the endpoint, "endpoint" leaves the check to the endpoint, "none" makes
            the route public.
        errors: Format of the errors that the endpoint does not answer itself; None: the format of Cloudflare's router.
        summary: One line for the OpenAPI description; empty: the description does not contain the route.
        request_schema: Returns the schema of the body for the OpenAPI description; None: it shows no body.
        reply_schema: Schema of a successful JSON reply.
        parameters: OpenAPI parameters of query and header.
        statuses: Descriptions of the statuses of a public route.
        needs_header: Name of a header without which the route does not match; empty: none.
        ignores_slashes: Whether repeated slashes, and a slash at the end of the path, have no effect.
    """

    label: str
    path: str
    endpoint: MakeApp
    methods: tuple[str, ...] = ("GET",)
    guard: Literal["token", "endpoint", "none"] = "token"
    errors: ErrorWriter | None = None
    summary: str = ""
    request_schema: Callable[[Inputs], Schema] | None = None
    reply_schema: Schema = field(default_factory=lambda: ANY_OBJECT)
    parameters: tuple[Schema, ...] = ()
    statuses: Mapping[int, str] = field(default_factory=dict)
    needs_header: str = ""
    ignores_slashes: bool = False

    def route(self, services: Services) -> "LabeledRoute":
        """Return Starlette's route."""
        app = self.endpoint(services)
        if self.guard == "token":
            app = RequireToken(app, services.check)
        if self.errors is not None:
            app = WithErrorFormat(app, self.errors)
        return LabeledRoute(self, app)

    def operation(self, inputs: Inputs) -> Operation:
        """Return the route's part of the OpenAPI description."""
        return Operation(
            path=self.path.replace(":name}", "}"),
            method=self.methods[0],
            summary=self.summary,
            reply_schema=self.reply_schema,
            error_schema=REST_ERROR if self.errors is None else self.errors.schema,
            request_schema=None if self.request_schema is None else self.request_schema(inputs),
            parameters=self.parameters,
            statuses=self.statuses,
        )


class LabeledRoute(routing.Route):
    """The Starlette route that a RouteSpec describes."""

    def __init__(self, spec: RouteSpec, app: ASGIApp) -> None:
        super().__init__(spec.path, app, methods=spec.methods)
        self.spec = spec

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Match by path and method, and by the header that the route needs."""
        if self.spec.needs_header and self.spec.needs_header not in Headers(scope=scope):
            return Match.NONE, {}
        if self.spec.ignores_slashes and scope["type"] == "http":
            path = scope["path"]
            if path.endswith("/") or "//" in path:
                scope = {**scope, "path": _SLASHES.sub("/", path).rstrip("/") or "/"}
        return super().matches(scope)

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Record the label, then call the endpoint."""
        request_log(scope).enter(self.spec.label)
        await super().handle(scope, receive, send)


class EndpointApp:
    """An endpoint as an ASGI application. Starlette's Route would wrap a plain function instead of calling it."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._app = request_response(endpoint)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)


def as_asgi(endpoint: Endpoint) -> MakeApp:
    """Return a factory for an ASGI application that calls `endpoint`."""
    return lambda services: EndpointApp(endpoint)
