"""What there is to run, as Cloudflare's and OpenAI's clients ask for it: models, their schemas, tasks.

Knows the shapes of both; what the models are comes from the inference server, each time.
"""

import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import grpc
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from http_bridge.api.workers_ai.replies import envelope
from http_bridge.errors import ApiError
from http_bridge.protocol import to_grpc as translate
from http_bridge.protocol.schemas import RUN_OUTPUT, Inputs
from http_bridge.protocol.validation import bad_input
from http_bridge.upstream.client import Upstream
from tailrace.v1.inference_pb2 import Model

Endpoint = Callable[[Request], Awaitable[Response]]
_Entry = dict[str, Any]

_MAX_PER_PAGE = 1000
_DEFAULT_PER_PAGE = 50
# Cloudflare's own, so that what is kept under them elsewhere finds itself again.
_TASK = {
    "id": "c329a1f9-323d-4e91-b2aa-582dd4188d34",
    "name": "Text Generation",
    "description": "Language models that continue a text or a conversation.",
}
_KNOWN_IDS = {"@cf/meta/llama-2-7b-chat-int8": "9c95c39d-45b3-4163-9631-22f0c0dc3b14"}
_SOURCES = {"@cf": 1, "@hf": 2}
_STARTED = time.time()


async def search_models(request: Request) -> Response:
    """GET …/ai/models/search: by author, task, search, source; page by page, and an empty page behind the last."""
    query = request.query_params
    entries = [_search_entry(model) for model in await _models(request)]
    return _page([entry for entry in entries if _matches(entry, query)], query)


class ModelSchema:
    """GET …/ai/models/schema?model=: what bodies are held to."""

    def __init__(self, inputs: Inputs) -> None:
        self._schema = {"input": inputs.run, "output": RUN_OUTPUT}

    async def __call__(self, request: Request) -> Response:
        name = request.query_params.get("model")
        if not name:
            raise bad_input("required properties at '/' are 'model'")
        if name not in [model.name for model in await _models(request)]:
            raise ApiError(400, 5007, f"No such model {name} or task")
        return JSONResponse(envelope(self._schema))


async def search_tasks(request: Request) -> Response:
    """GET …/ai/tasks/search."""
    return _page([_TASK], request.query_params)


async def search_authors(request: Request) -> Response:
    """GET …/ai/authors/search."""
    authors = sorted({_author(model.name) for model in await _models(request)})
    return _page([{"id": author, "name": author} for author in authors], request.query_params)


async def openai_models(request: Request) -> Response:
    """GET …/v1/models."""
    return JSONResponse({"object": "list", "data": [_openai_entry(model) for model in await _models(request)]})


async def openai_model(request: Request) -> Response:
    """GET …/v1/models/{model}."""
    name = request.path_params["model"]
    for model in await _models(request):
        if model.name == name:
            return JSONResponse(_openai_entry(model))
    raise ApiError(404, 5007, f"No such model {name} or task")


async def _models(request: Request) -> Sequence[Model]:
    upstream: Upstream = request.state.upstream
    try:
        return await upstream.list_models()
    except grpc.aio.AioRpcError as error:
        raise translate.rpc_api_error(error, model="") from error


def _search_entry(model: Model) -> _Entry:
    values = {
        "context_window": model.window,
        "context_length_limit": model.context_length,
        "sequence_length_limit": model.sequence_length,
        "function_calling": "true",
        "weights": model.weights,
        "precision": model.precision,
    }
    return {
        "id": _KNOWN_IDS.get(model.name, str(uuid.uuid5(uuid.NAMESPACE_URL, model.name))),
        "source": _SOURCES.get(model.name.partition("/")[0], 1),
        "name": model.name,
        "description": model.description,
        "task": _TASK,
        "created_at": time.strftime("%Y-%m-%d %H:%M:%S.000", time.gmtime(_STARTED)),
        "tags": ["stand-in"] if model.stands_in else [],
        # All values are strings, as Cloudflare's are.
        "properties": [{"property_id": name, "value": str(value)} for name, value in values.items()],
    }


def _openai_entry(model: Model) -> _Entry:
    return {"id": model.name, "object": "model", "created": int(_STARTED), "owned_by": _author(model.name)}


def _author(name: str) -> str:
    parts = name.split("/")
    return parts[1] if len(parts) > 2 else "tailrace"


def _matches(entry: _Entry, query: QueryParams) -> bool:
    wanted = query.get("search", "").lower()
    return (
        (wanted in entry["name"].lower() or wanted in entry["description"].lower())
        and query.get("task", _TASK["name"]).lower() in (_TASK["name"].lower(), _TASK["id"])
        and query.get("author", "").lower() in ("", _author(entry["name"]).lower())
        and query.get("source", "") in ("", str(entry["source"]))
    )


def _page(entries: list[_Entry], query: QueryParams) -> Response:
    page = _whole(query, "page", 1, _MAX_PER_PAGE * _MAX_PER_PAGE)
    per_page = _whole(query, "per_page", _DEFAULT_PER_PAGE, _MAX_PER_PAGE)
    shown = entries[(page - 1) * per_page : page * per_page]
    info = {
        "page": page,
        "per_page": per_page,
        "count": len(shown),
        "total_count": len(entries),
        "total_pages": -(-len(entries) // per_page),
    }
    return JSONResponse({**envelope(shown), "result_info": info})


def _whole(query: QueryParams, name: str, default: int, maximum: int) -> int:
    text = query.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and 1 <= int(text) <= maximum):
        raise bad_input(f"the query's {name} must be a whole number from 1 to {maximum}")
    return int(text)
