"""Lists the models of the inference servers, for every API that publishes them."""

from collections.abc import Sequence

import grpc
from starlette.requests import Request

from http_bridge.errors import ApiError
from http_bridge.protocol.grpc_errors import rpc_api_error, unknown_model
from http_bridge.upstream.client import Upstream
from tailrace.v1.inference_pb2 import Model
from tailrace_shared.request_fields import SAMPLING_FIELDS

_DIGITS = 6


async def list_models(request: Request) -> Sequence[Model]:
    """Fetch and return the models that the inference servers host.

    Raises:
        ApiError: No server answers.
    """
    upstream: Upstream = request.state.upstream
    try:
        return await upstream.list_models()
    except grpc.aio.AioRpcError as error:
        raise rpc_api_error(error, model="") from error


async def with_names(error: ApiError, model: str, upstream: Upstream) -> ApiError:
    """Return `error`, or for an unknown model an error that lists the models of the servers too."""
    if not error.is_unknown_model:
        return error
    try:
        names = [model.name for model in await upstream.list_models()]
    except grpc.aio.AioRpcError:
        return error
    return unknown_model(model, names)


def author(name: str) -> str:
    """Return the author in a model's name, such as meta in @cf/meta/llama-2-7b-chat-int8; "tailrace" without one."""
    parts = name.split("/")
    return parts[1] if len(parts) > 2 else "tailrace"


def sampling_defaults(model: Model | None) -> dict[str, float]:
    """Return the model's defaults of the sampling parameters, by name. Leaves out max_tokens."""
    if model is None:
        return {}
    values = {field.name: value for field, value in model.sampling_defaults.ListFields()}
    # The protobuf fields are float32: 0.6 arrives as 0.6000000238.
    return {
        each.name: round(values[each.name], _DIGITS)
        for each in SAMPLING_FIELDS
        if each.name in values and each.name != "max_tokens"
    }
