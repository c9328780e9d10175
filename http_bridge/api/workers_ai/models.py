"""Endpoints that list models, their schemas, tasks and authors as Cloudflare's API does.

Each request fetches the models from the inference servers.
"""

import time
import uuid
from typing import Any

from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from http_bridge.api.upstream_models import author, list_models
from http_bridge.api.workers_ai.replies import envelope
from http_bridge.errors import ApiError
from http_bridge.protocol import embedding_schemas
from http_bridge.protocol.reply_schemas import RUN_OUTPUT
from http_bridge.protocol.schemas import Inputs
from http_bridge.protocol.validation import bad_input
from tailrace.v1.inference_pb2 import Model, Task

_Entry = dict[str, Any]

_MAX_PER_PAGE = 1000
_DEFAULT_PER_PAGE = 50
# Cloudflare's own ids, so that tools which stored one find the same task or model here.
_TASK = {
    "id": "c329a1f9-323d-4e91-b2aa-582dd4188d34",
    "name": "Text Generation",
    "description": "Language models that continue a text or a conversation.",
}
_EMBEDDING_TASK = {
    "id": "0137cdcf-162a-4108-94f2-1ca59e8c65ee",
    "name": "Text Embeddings",
    "description": "Models that turn a text into a vector, for search and retrieval.",
}
_KNOWN_IDS = {
    "@cf/meta/llama-2-7b-chat-int8": "9c95c39d-45b3-4163-9631-22f0c0dc3b14",
    "@cf/baai/bge-small-en-v1.5": "57fbd08a-a4c4-411c-910d-b9459ff36c20",
    "@cf/baai/bge-m3": "eed32bc1-8775-4985-89ce-dd1405508ad8",
    "@cf/qwen/qwen3-embedding-0.6b": "cb254e3b-372b-4d4e-8526-ada79940427a",
}
_SOURCES = {"@cf": 1, "@hf": 2}
# A value of Cloudflare's public API: clients may compare with it.
_SUBSTITUTE_TAG = "stand-in"
_STARTED = time.time()


async def search_models(request: Request) -> Response:
    """GET …/ai/models/search: filter by author, task, search and source. A page after the last one is empty."""
    query = request.query_params
    entries = [_search_entry(model) for model in await list_models(request)]
    return _page([entry for entry in entries if _matches(entry, query)], query)


class ModelSchema:
    """GET …/ai/models/schema?model=: return the JSON Schemas of input and output."""

    def __init__(self, inputs: Inputs) -> None:
        self._schema = {"input": inputs.run, "output": RUN_OUTPUT}
        self._embedding = {"input": embedding_schemas.RUN_INPUT, "output": embedding_schemas.RUN_OUTPUT}

    async def __call__(self, request: Request) -> Response:
        """Answer with the schemas, the same for every model of a task. Raises ApiError 400/5007 for an unknown model."""
        name = request.query_params.get("model")
        if not name:
            raise bad_input("required properties at '/' are 'model'")
        model = next((model for model in await list_models(request) if model.name == name), None)
        if model is None:
            raise ApiError(400, 5007, f"No such model {name} or task")
        return JSONResponse(envelope(self._embedding if _embeds(model) else self._schema))


async def search_tasks(request: Request) -> Response:
    """GET …/ai/tasks/search: list the tasks of the models: text generation, text embeddings."""
    return _page([_TASK, _EMBEDDING_TASK], request.query_params)


async def search_authors(request: Request) -> Response:
    """GET …/ai/authors/search: list the authors of the models in alphabetical order."""
    authors = sorted({author(model.name) for model in await list_models(request)})
    return _page([{"id": name, "name": name} for name in authors], request.query_params)


def _embeds(model: Model) -> bool:
    return model.task == Task.TASK_TEXT_EMBEDDING


def _properties(model: Model) -> dict[str, object]:
    common = {"weights": model.weights, "precision": model.precision}
    if _embeds(model):
        return {"max_input_tokens": model.context_length, "output_dimensions": model.dimensions, **common}
    return {
        "context_window": model.window,
        "context_length_limit": model.context_length,
        "sequence_length_limit": model.sequence_length,
        "function_calling": "true",
        **common,
    }


def _search_entry(model: Model) -> _Entry:
    return {
        "id": _KNOWN_IDS.get(model.name, str(uuid.uuid5(uuid.NAMESPACE_URL, model.name))),
        "source": _SOURCES.get(model.name.partition("/")[0], 1),
        "name": model.name,
        "description": model.description,
        "task": _EMBEDDING_TASK if _embeds(model) else _TASK,
        "created_at": time.strftime("%Y-%m-%d %H:%M:%S.000", time.gmtime(_STARTED)),
        "tags": [_SUBSTITUTE_TAG] if model.stands_in else [],
        # Every value is a string, as in Cloudflare's API.
        "properties": [{"property_id": name, "value": str(value)} for name, value in _properties(model).items()],
    }


def _matches(entry: _Entry, query: QueryParams) -> bool:
    wanted, task = query.get("search", "").lower(), entry["task"]
    return (
        (wanted in entry["name"].lower() or wanted in entry["description"].lower())
        and query.get("task", task["name"]).lower() in (task["name"].lower(), task["id"])
        and query.get("author", "").lower() in ("", author(entry["name"]).lower())
        and query.get("source", "") in ("", str(entry["source"]))
    )


def _page(entries: list[_Entry], query: QueryParams) -> Response:
    page = _number(query, "page", 1, _MAX_PER_PAGE * _MAX_PER_PAGE)
    per_page = _number(query, "per_page", _DEFAULT_PER_PAGE, _MAX_PER_PAGE)
    shown = entries[(page - 1) * per_page : page * per_page]
    info = {
        "page": page,
        "per_page": per_page,
        "count": len(shown),
        "total_count": len(entries),
        "total_pages": -(-len(entries) // per_page),
    }
    return JSONResponse({**envelope(shown), "result_info": info})


def _number(query: QueryParams, name: str, default: int, maximum: int) -> int:
    text = query.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and 1 <= int(text) <= maximum):
        raise bad_input(f"the query's {name} must be a whole number from 1 to {maximum}")
    return int(text)
