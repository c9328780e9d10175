"""Endpoints that list models, their schemas, tasks and authors as Cloudflare's API does.

Each request fetches the models from the inference servers.
"""

import json
import time
import uuid
from collections.abc import Mapping
from typing import Any

from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from http_bridge.api.upstream_models import author, list_models, sampling_defaults
from http_bridge.api.workers_ai.marketplace import openrouter_entry
from http_bridge.api.workers_ai.replies import envelope
from http_bridge.protocol import embedding_schemas
from http_bridge.protocol.grpc_errors import unknown_model
from http_bridge.protocol.reply_schemas import CHOICES_OUTPUT, RESPONSES_OUTPUT, RUN_OUTPUT
from http_bridge.protocol.schemas import Inputs, Schema
from http_bridge.protocol.validation.documents import bad_input
from tailrace.v1.inference_pb2 import Model, Task

_Entry = dict[str, Any]

_MAX_PER_PAGE = 1000
_DEFAULT_PER_PAGE = 50
# Cloudflare's own ids: a tool that has stored an id finds the same task or model here.
_TEXT_GENERATION = {
    "id": "c329a1f9-323d-4e91-b2aa-582dd4188d34",
    "name": "Text Generation",
    "description": "Language models that continue a text or a conversation.",
}
_TEXT_EMBEDDINGS = {
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
# A tag of the bridge's public API. It must not change, because clients may compare a model's tags with it.
_SUBSTITUTE_TAG = "stand-in"
# If a template can only switch thinking on or off, "none" switches it off and every other effort on.
_REASONING_EFFORT = {
    "supported_efforts": ["high", "medium", "low", "none"],
    "default_effort": "medium",
    "mandatory": False,
    "default_enabled": True,
    "normalizes_to": {"minimal": "low", "xhigh": "high"},
}
_OPENROUTER = "openrouter"
_PROMPT: Schema = {"type": "string", "minLength": 1}
_STARTED = time.time()


async def search_models(request: Request) -> Response:
    """GET …/ai/models/search: filter by author, task, search and source. A page after the last one is empty.

    With format=openrouter, the reply has the format that OpenRouter requires of its providers.
    """
    query = request.query_params
    models = [(model, entry) for model in await list_models(request) if _matches(entry := _search_entry(model), query)]
    if _has_marketplace_format(query):
        shown = [openrouter_entry(model, created=int(_STARTED)) for model, _ in models[_page_slice(query)]]
        return JSONResponse({"data": shown})
    return _page([entry for _, entry in models], query)


async def search_models_for_worker(request: Request) -> Response:
    """GET /ai-api/models/search: `search_models` for env.AI.models(), which always reads the list from `result`."""
    response = await search_models(request)
    if not _has_marketplace_format(request.query_params):
        return response
    entries = json.loads(bytes(response.body))["data"]
    return JSONResponse({**envelope(entries), "data": entries})


class ModelSchema:
    """GET …/ai/models/schema?model=: return the JSON Schemas of input and output."""

    def __init__(self, inputs: Inputs) -> None:
        self._inputs = inputs

    async def __call__(self, request: Request) -> Response:
        """Return the schemas of the model's input and output.

        Raises:
            ApiError: 400/5006 if the query names no model, 400/5007 or 400/5028 for an unknown model.
        """
        name = request.query_params.get("model")
        if not name:
            raise bad_input("required properties at '/' are 'model'")
        models = await list_models(request)
        model = next((model for model in models if model.name == name), None)
        if model is None:
            raise unknown_model(name, [model.name for model in models])
        if model.task == Task.TASK_TEXT_EMBEDDING:
            schema = {"input": embedding_schemas.RUN_INPUT, "output": embedding_schemas.RUN_OUTPUT}
        elif model.reply_shape == "choices":
            schema = {"input": _choices_input(self._inputs), "output": CHOICES_OUTPUT}
        elif model.reply_shape == "responses":
            accepted = [*_choices_input(self._inputs)["anyOf"], self._inputs.run["anyOf"][2]]
            schema = {"input": {"type": "object", "anyOf": accepted}, "output": RESPONSES_OUTPUT}
        else:
            schema = {"input": self._inputs.run, "output": RUN_OUTPUT}
        schema["input"] = _with_defaults(schema["input"], sampling_defaults(model))
        return JSONResponse(envelope(schema))


async def search_tasks(request: Request) -> Response:
    """GET …/ai/tasks/search: list the tasks of the models. Without models, the list has text generation."""
    tasks = {_task(model)["id"]: _task(model) for model in await list_models(request)}
    return _page(list(tasks.values()) or [_TEXT_GENERATION], request.query_params)


async def search_authors(request: Request) -> Response:
    """GET …/ai/authors/search: list the authors of the models in alphabetical order."""
    authors = sorted({author(model.name) for model in await list_models(request)})
    return _page([{"id": name, "name": name} for name in authors], request.query_params)


def _choices_input(inputs: Inputs) -> Schema:
    """Return OpenAI's schema with a prompt as an alternative to messages, and without `model`, which the path names."""
    chat = inputs.chat
    fields = {name: schema for name, schema in chat["properties"].items() if name != "model"}
    prompt = {**{name: schema for name, schema in fields.items() if name != "messages"}, "prompt": _PROMPT}
    return {
        "type": "object",
        "anyOf": [
            {"title": "Prompt", "type": "object", "properties": prompt, "required": ["prompt"]},
            {"title": "Messages", "type": "object", "properties": fields, "required": ["messages"]},
        ],
    }


def _with_defaults(schema: Schema, defaults: Mapping[str, float]) -> Schema:
    """Return a copy of a request schema with these defaults for the sampling parameters."""
    if not defaults:
        return schema
    if forms := schema.get("anyOf"):
        return {**schema, "anyOf": [_with_defaults(form, defaults) for form in forms]}
    fields = schema["properties"]
    changed = {name: {**fields[name], "default": value} for name, value in defaults.items() if name in fields}
    return {**schema, "properties": {**fields, **changed}}


def _search_entry(model: Model) -> _Entry:
    values = _embedding_properties(model) if model.task == Task.TASK_TEXT_EMBEDDING else _text_properties(model)
    return {
        "id": _KNOWN_IDS.get(model.name, str(uuid.uuid5(uuid.NAMESPACE_URL, model.name))),
        "source": _SOURCES.get(model.name.partition("/")[0], 1),
        "name": model.name,
        "description": model.description,
        "task": _task(model),
        "created_at": time.strftime("%Y-%m-%d %H:%M:%S.000", time.gmtime(_STARTED)),
        "tags": [_SUBSTITUTE_TAG] if model.stands_in else [],
        # As in Cloudflare's API, numbers and booleans are written as strings, and lists and objects as JSON.
        "properties": [
            {"property_id": name, "value": value if isinstance(value, list | dict) else str(value)}
            for name, value in {**values, "weights": model.weights, "precision": model.precision}.items()
        ],
    }


def _text_properties(model: Model) -> _Entry:
    values: _Entry = {
        "async_queue": "true",
        "context_window": model.window,
        "context_length_limit": model.context_length,
        "sequence_length_limit": model.sequence_length,
        "function_calling": "true",
        "price": [_price("input"), _price("output"), _price("cached input")],
    }
    if defaults := sampling_defaults(model):
        values["default_parameters"] = defaults
    if model.adapters:
        values |= {"lora": "true", "adapters": list(model.adapters)}
    if model.has_reasoning:
        values |= {"reasoning": "true", "reasoning_effort": _REASONING_EFFORT}
    return values


def _embedding_properties(model: Model) -> _Entry:
    return {
        "max_input_tokens": model.context_length,
        "async_queue": "true",
        "output_dimensions": model.dimensions,
        "price": [_price("input")],
    }


def _price(tokens: str) -> _Entry:
    return {"unit": f"per M {tokens} tokens", "price": 0, "currency": "USD"}


def _task(model: Model) -> _Entry:
    return _TEXT_EMBEDDINGS if model.task == Task.TASK_TEXT_EMBEDDING else _TEXT_GENERATION


def _matches(entry: _Entry, query: QueryParams) -> bool:
    wanted = query.get("search", "").lower()
    return (
        (wanted in entry["name"].lower() or wanted in entry["description"].lower())
        and query.get("task", "").lower() in ("", entry["task"]["name"].lower(), entry["task"]["id"])
        and query.get("author", "").lower() in ("", author(entry["name"]).lower())
        and query.get("source", "") in ("", str(entry["source"]))
    )


def _page(entries: list[_Entry], query: QueryParams) -> Response:
    page, per_page = _page_numbers(query)
    shown = entries[_page_slice(query)]
    info = {
        "page": page,
        "per_page": per_page,
        "count": len(shown),
        "total_count": len(entries),
        "total_pages": -(-len(entries) // per_page),
    }
    return JSONResponse({**envelope(shown), "result_info": info})


def _page_numbers(query: QueryParams) -> tuple[int, int]:
    page = _number(query, "page", 1, _MAX_PER_PAGE * _MAX_PER_PAGE)
    return page, _number(query, "per_page", _DEFAULT_PER_PAGE, _MAX_PER_PAGE)


def _page_slice(query: QueryParams) -> slice:
    page, per_page = _page_numbers(query)
    return slice((page - 1) * per_page, page * per_page)


def _has_marketplace_format(query: QueryParams) -> bool:
    """Return True for format=openrouter. Raises ApiError 400/5006 for any other format."""
    wanted = query.get("format")
    if wanted not in (None, "", _OPENROUTER):
        raise bad_input(f"enum {wanted:.100} not in {_OPENROUTER} at '/format'")
    return wanted == _OPENROUTER


def _number(query: QueryParams, name: str, default: int, maximum: int) -> int:
    text = query.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and 1 <= int(text) <= maximum):
        raise bad_input(f"the query's {name} must be a whole number from 1 to {maximum}")
    return int(text)
