"""Endpoints of OpenAI's list of models."""

import time

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from http_bridge.api.upstream_models import author, list_models
from http_bridge.errors import ApiError
from tailrace.v1.inference_pb2 import Model

_STARTED = int(time.time())


async def openai_models(request: Request) -> Response:
    """GET …/v1/models: list every model."""
    return JSONResponse({"object": "list", "data": [_entry(model) for model in await list_models(request)]})


async def openai_model(request: Request) -> Response:
    """GET …/v1/models/{model}: describe one model, or answer 404."""
    name = request.path_params["model"]
    for model in await list_models(request):
        if model.name == name:
            return JSONResponse(_entry(model))
    raise ApiError(404, 5007, f"No such model {name} or task")


def _entry(model: Model) -> dict[str, object]:
    return {"id": model.name, "object": "model", "created": _STARTED, "owned_by": author(model.name)}
