"""Endpoints of OpenAI's list of models."""

import time
from collections.abc import Sequence

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from http_bridge.api.upstream_models import author, list_models, sampling_defaults
from http_bridge.protocol.grpc_errors import unknown_model
from tailrace.v1.inference_pb2 import Model

_STARTED = int(time.time())


async def openai_models(request: Request) -> Response:
    """GET …/v1/models: list every model, each followed by its LoRA adapters."""
    return JSONResponse({"object": "list", "data": _entries(await list_models(request))})


async def openai_model(request: Request) -> Response:
    """GET …/v1/models/{model}: describe one model or LoRA adapter, or answer 404."""
    name = request.path_params["model"]
    models = await list_models(request)
    # If a model and an adapter have the same name, the name means the model.
    for entry in sorted(_entries(models), key=lambda entry: "parent" in entry):
        if entry["id"] == name:
            return JSONResponse(entry)
    raise unknown_model(name, [model.name for model in models])


def _entries(models: Sequence[Model]) -> list[dict[str, object]]:
    entries: list[dict[str, object]] = []
    for model in models:
        entry = _entry(model)
        entries += [entry, *({**entry, "id": name, "parent": model.name} for name in model.adapters)]
    return entries


def _entry(model: Model) -> dict[str, object]:
    """Return a model with its limits in tokens and its sampling defaults, under OpenRouter's and vLLM's names.

    Only embedding models have `dimensions`.
    """
    # `context_length` is the window of prompt and reply: clients subtract the longest reply to find the longest prompt.
    window = model.window or model.context_length
    lengths = {"context_length": window, "max_model_len": window}
    return {
        "id": model.name,
        "object": "model",
        "created": _STARTED,
        "owned_by": author(model.name),
        **({"description": model.description} if model.description else {}),
        **(lengths if window else {}),
        **({"max_output_tokens": model.sequence_length} if model.sequence_length else {}),
        **({"dimensions": model.dimensions} if model.dimensions else {}),
        **({"default_parameters": defaults} if (defaults := sampling_defaults(model)) else {}),
    }
