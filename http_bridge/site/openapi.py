"""The description of the API at /openapi.json, OpenAPI 3.1, made of the schemas that bodies are really held to."""

from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from http_bridge.protocol.profiles import PROFILE_HEADER, PROFILE_NAMES
from http_bridge.protocol.schemas import RUN_OUTPUT, Inputs

_Json = dict[str, Any]
_ACCOUNT = "/client/v4/accounts/{account}"
_DESCRIPTION = (
    "Workers AI text generation on your own hardware: Cloudflare's REST interface, OpenAI's, and the Worker binding's. "
    "Errors before the first byte keep their HTTP status; a failure during a stream is its last event."
)
_ANY_OBJECT: _Json = {"type": "object"}
_ENTRY: _Json = {
    "type": "object",
    "properties": {"code": {"type": "integer"}, "message": {"type": "string"}},
    "required": ["code", "message"],
}
_ENVELOPE: _Json = {
    "type": "object",
    "properties": {
        "result": {},
        "success": {"const": True},
        "errors": {"type": "array", "maxItems": 0},
        "messages": {"type": "array"},
    },
    "required": ["result", "success", "errors", "messages"],
}
_REST_ERROR: _Json = {
    "type": "object",
    "properties": {
        "success": {"const": False},
        "errors": {"type": "array", "minItems": 1, "items": _ENTRY},
        "result": {"type": ["object", "null"]},
        "messages": {"type": "array"},
    },
    "required": ["success", "errors", "result", "messages"],
}
_OPENAI_ERROR: _Json = {
    **_REST_ERROR,
    "properties": {
        **_REST_ERROR["properties"],
        "error": {
            "type": "object",
            "properties": {"message": {"type": "string"}, "type": {"type": "string"}, "code": {"type": "string"}},
            "required": ["message", "type", "code"],
        },
    },
    "required": [*_REST_ERROR["required"], "error"],
}
_BINDING_ERROR: _Json = {
    "type": "object",
    "properties": {
        "name": {"const": "AiError"},
        "internalCode": {"type": "integer"},
        "httpCode": {"type": "integer"},
        "message": {"type": "string"},
        "description": {"type": "string"},
        "requestId": {"type": "string"},
    },
    "required": ["name", "internalCode", "httpCode", "message", "description", "requestId"],
}
# Status codes that a run can be refused with, and what they mean.
_RUN_STATUSES = {
    400: "A field is wrong or missing, or there is no such model, route or token",
    401: "Wrong token",
    403: "Another account's token",
    404: "What the path names cannot exist",
    405: "Wrong method, or the model does not support LoRA",
    408: "The request took too long",
    413: "The body is too large, or the prompt is longer than the model's context",
    429: "No capacity; Retry-After says when to come back",
    500: "The model failed",
    503: "The inference server is not there, still loading, or stopping",
}
_LIST_STATUSES = {status: _RUN_STATUSES[status] for status in (400, 401, 403, 404, 408, 500, 503)}


def openapi(inputs: Inputs) -> Callable[[Request], Awaitable[Response]]:
    """The endpoint GET /openapi.json of a bridge that takes `inputs`."""
    described = document(inputs)

    async def answer(request: Request) -> Response:
        return JSONResponse(described)

    return answer


def document(inputs: Inputs) -> _Json:
    """The whole description."""
    paths: _Json = {
        f"{_ACCOUNT}/ai/run/{{model}}": {"post": _run("Run a model", inputs.run, _result(), _REST_ERROR, "model")},
        f"{_ACCOUNT}/ai/run": {
            "post": _run("Run the model that the body names", inputs.generic, _result(), _REST_ERROR)
        },
        f"{_ACCOUNT}/ai/models/search": {"get": _search("Models", "author", "task", "search", "source")},
        f"{_ACCOUNT}/ai/tasks/search": {"get": _search("Tasks")},
        f"{_ACCOUNT}/ai/authors/search": {"get": _search("Authors")},
        f"{_ACCOUNT}/ai/models/schema": {
            "get": _get(
                "What a model accepts", _ENVELOPE, _REST_ERROR, [_query("model", {"type": "string"}, required=True)]
            )
        },
        f"{_ACCOUNT}/tokens/verify": {"get": _get("Whether the token is valid", _ENVELOPE, _REST_ERROR)},
        "/client/v4/user/tokens/verify": {"get": _get("Whether the token is valid", _ENVELOPE, _REST_ERROR)},
        "/healthz": {"get": _probe("Whether the bridge runs", {200: "It does"})},
        "/readyz": {"get": _probe("Whether it can serve", {200: "It can", 503: "It cannot, and why"})},
        "/run": {"post": _binding_run(inputs)},
        "/ai-gateway/run": {"post": _binding_run(inputs)},
        "/ai-api/models/search": {"get": _get("Models, for a Worker", _ENVELOPE, _BINDING_ERROR)},
    }
    for base in (f"{_ACCOUNT}/ai/v1", "/v1"):
        paths |= _openai_paths(base, inputs)
    for path, methods in paths.items():
        for method in methods.values():
            names = [part.strip("{}") for part in path.split("/") if part.startswith("{")]
            method["parameters"] = [*map(_path_parameter, names), *method.get("parameters", [])]
    return {
        "openapi": "3.1.0",
        "info": {"title": "Tailrace", "version": "1", "description": _DESCRIPTION},
        "components": {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
        "security": [{"token": []}, {}],
        "paths": paths,
    }


def _openai_paths(base: str, inputs: Inputs) -> _Json:
    whole = {"type": "object", "required": ["id", "object", "created", "model", "choices", "usage"]}
    return {
        f"{base}/chat/completions": {"post": _run("Chat", inputs.chat, whole, _OPENAI_ERROR)},
        f"{base}/completions": {"post": _run("Continue a text", inputs.completion, whole, _OPENAI_ERROR)},
        f"{base}/models": {"get": _get("Models", _ANY_OBJECT, _OPENAI_ERROR)},
        f"{base}/models/{{model}}": {"get": _get("One model", _ANY_OBJECT, _OPENAI_ERROR)},
    }


def _run(summary: str, accepted: _Json, reply: _Json, error: _Json, *_: str) -> _Json:
    return {
        "summary": summary,
        "parameters": [_header(PROFILE_HEADER, {"enum": list(PROFILE_NAMES)})],
        "requestBody": {"required": True, "content": {"application/json": {"schema": accepted}}},
        "responses": {
            "200": {
                "description": "The reply, whole or as server-sent events",
                "content": {
                    "application/json": {"schema": reply},
                    # What an event holds depends on the profile and on what was asked for.
                    "text/event-stream": {"schema": {}},
                },
            },
            **_errors(_RUN_STATUSES, error),
        },
    }


def _binding_run(inputs: Inputs) -> _Json:
    wrapped = {"type": "object", "properties": {"inputs": inputs.run, "options": {"type": "object"}}}
    tensors = {"type": "object", "properties": {"input": {"type": "array"}, "stream": {"type": "boolean"}}}
    described = _run("A Worker's env.AI.run", {"anyOf": [wrapped, tensors]}, _ANY_OBJECT, _BINDING_ERROR)
    described["parameters"].append(_header("cf-consn-model-id", {"type": "string"}))
    return described


def _result() -> _Json:
    return {**_ENVELOPE, "properties": {**_ENVELOPE["properties"], "result": RUN_OUTPUT["oneOf"][0]}}


def _search(summary: str, *names: str) -> _Json:
    pages = [_query(name, {"type": "integer", "minimum": 1, "maximum": 1000}) for name in ("page", "per_page")]
    return _get(summary, _ENVELOPE, _REST_ERROR, [*pages, *(_query(name, {"type": "string"}) for name in names)])


def _get(summary: str, reply: _Json, error: _Json, parameters: list[_Json] | None = None) -> _Json:
    return {
        "summary": summary,
        "parameters": parameters or [],
        "responses": {"200": _answer("The answer", reply), **_errors(_LIST_STATUSES, error)},
    }


def _probe(summary: str, statuses: dict[int, str]) -> _Json:
    return {
        "summary": summary,
        "security": [{}],
        "responses": {str(status): _answer(text, _ANY_OBJECT) for status, text in statuses.items()},
    }


def _errors(statuses: dict[int, str], schema: _Json) -> _Json:
    return {str(status): _answer(text, schema) for status, text in statuses.items()}


def _answer(description: str, schema: _Json) -> _Json:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _path_parameter(name: str) -> _Json:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}


def _query(name: str, schema: _Json, *, required: bool = False) -> _Json:
    return {"name": name, "in": "query", "required": required, "schema": schema}


def _header(name: str, schema: _Json) -> _Json:
    return {"name": name, "in": "header", "required": False, "schema": schema}
