"""Finds the LoRA adapter of a request: by the field `lora`, or by an adapter's name in the field `model`."""

from dataclasses import replace

from http_bridge.api.base import IncomingRequest
from http_bridge.protocol.grpc_errors import unknown_adapter
from http_bridge.protocol.run_body import RunBody


def check_adapter(incoming: IncomingRequest, body: RunBody, model: str) -> None:
    """Check that the model has the adapter that the body names, if it names one. An unknown model passes the check.

    Raises:
        ApiError: 405/5005 if the model has no adapters, 400/5006 if it has only other adapters.
        OutdatedModels: The bridge must first fetch the lists of models from the servers.
    """
    if not body.adapter:
        return
    description = incoming.describe(model)
    if description is not None and body.adapter not in description.adapters:
        raise unknown_adapter(model, description.adapters)


def with_adapter(incoming: IncomingRequest, body: RunBody, model: str) -> tuple[RunBody, str]:
    """Return the body and the model of a request whose `model` may be the name of an adapter, as in vLLM's API.

    If a model and an adapter have the same name, the name means the model. If several models have an adapter of this
    name, the first of these models is used.

    Raises:
        ApiError: As for `check_adapter`.
        OutdatedModels: As for `check_adapter`.
    """
    if not body.adapter and incoming.models.find_model(model) is None:
        base = incoming.models.find_adapter(model)
        if base is not None:
            return replace(body, adapter=model), base.name
        incoming.describe(
            model
        )  # raises OutdatedModels if the servers may have models or adapters that are not known yet
    check_adapter(incoming, body, model)
    return body, model
