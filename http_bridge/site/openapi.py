"""Builds the OpenAPI 3.1 description of the routes. Bodies are validated against the same request schemas."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from http_bridge.protocol.profiles import PROFILE_HEADER, PROFILE_NAMES
from http_bridge.protocol.schemas import Schema
from http_bridge.site.examples import Example, example_of

_DESCRIPTION = (
    "Workers AI text generation on your own hardware: Cloudflare's REST interface, OpenAI's, and the Worker binding's. "
    "Errors before the first byte keep their HTTP status; a failure during a stream is its last event."
)
# Statuses of refused runs, with their descriptions.
_RUN_STATUSES = {
    400: "A field is wrong or missing, or there is no such model, route or token, or OpenAI's prompt is too long",
    401: "Wrong token",
    403: "Another account's token, or a host name that is not accepted without tokens",
    404: "No account or model can have the name in the path, or there is no such batch or, on OpenAI's routes, model",
    405: "Wrong method, or the model does not support LoRA",
    408: "The request took too long",
    413: "The body is too large, or the prompt is longer than the model's context",
    429: "No capacity; Retry-After is the number of seconds to wait",
    500: "The model failed",
    503: "The inference server cannot be reached, is still loading, or is stopping",
}
_LIST_STATUSES = {status: _RUN_STATUSES[status] for status in (400, 401, 403, 404, 408, 500, 503)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """A method of a path in the description.

    Attributes:
        path: The path, parameters in braces.
        method: HTTP method.
        summary: Summary in one line.
        reply_schema: Schema of a successful JSON reply.
        error_schema: Schema of an error.
        request_schema: Schema of the body; None: there is no body. A route with a body runs a model, and its reply is
            described as JSON or as a stream.
        parameters: OpenAPI parameters of query and header. Path parameters are derived from `path`.
        statuses: Descriptions by status, for a route that needs no token; empty for the usual statuses.
    """

    path: str
    method: str
    summary: str
    reply_schema: Schema
    error_schema: Schema
    request_schema: Schema | None = None
    parameters: tuple[Schema, ...] = ()
    statuses: Mapping[int, str]


def document(operations: Iterable[Operation]) -> Schema:
    """Return the OpenAPI document of the operations."""
    paths: dict[str, Schema] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _described(operation)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Tailrace", "version": "1", "description": _DESCRIPTION},
        "components": {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
        "security": [{"token": []}, {}],
        "paths": paths,
    }


def query(name: str, schema: Schema, *, required: bool = False) -> Schema:
    """Return the OpenAPI description of a query parameter."""
    return {"name": name, "in": "query", "required": required, "schema": schema}


def header(name: str, schema: Schema) -> Schema:
    """Return the OpenAPI description of an optional header."""
    return {"name": name, "in": "header", "required": False, "schema": schema}


def _described(operation: Operation) -> Schema:
    path_names = [part.strip("{}") for part in operation.path.split("/") if part.startswith("{")]
    parameters = [*map(_path_parameter, path_names), *operation.parameters]
    if operation.request_schema is not None:
        example = example_of(operation.path)
        content: Schema = {"schema": operation.request_schema}
        if example is not None:
            content["example"] = example.body
        profile = header(PROFILE_HEADER, {"enum": list(PROFILE_NAMES)})
        return {
            "summary": operation.summary,
            "parameters": [*map(_path_parameter, path_names), profile, *operation.parameters],
            "requestBody": {"required": True, "content": {"application/json": content}},
            "responses": {
                "200": _run_reply(operation.reply_schema, example),
                **_errors(_RUN_STATUSES, operation.error_schema),
            },
        }
    if operation.statuses:
        return {
            "summary": operation.summary,
            "security": [{}],
            "responses": _errors(operation.statuses, operation.reply_schema),
            "parameters": parameters,
        }
    answer = _answer("The answer", operation.reply_schema)
    return {
        "summary": operation.summary,
        "parameters": parameters,
        "responses": {"200": answer, **_errors(_LIST_STATUSES, operation.error_schema)},
    }


def _run_reply(schema: Schema, example: Example | None) -> Schema:
    # The schema of a stream is empty: the content of an event depends on the profile and on the request's fields.
    content: Schema = {"application/json": {"schema": schema}, "text/event-stream": {"schema": {}}}
    if example is not None:
        content["application/json"]["example"] = example.reply
        if example.stream:
            content["text/event-stream"]["example"] = example.stream
        else:
            del content["text/event-stream"]
    return {"description": "The reply, as one object or as server-sent events", "content": content}


def _errors(statuses: Mapping[int, str], schema: Schema) -> Schema:
    return {str(status): _answer(text, schema) for status, text in statuses.items()}


def _answer(description: str, schema: Schema) -> Schema:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _path_parameter(name: str) -> Schema:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
