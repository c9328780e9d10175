"""/ai/run/{model} and /ai/run: Workers AI's REST interface."""

from typing import Any

from http_bridge.api.base import Call, Job, check_model_name
from http_bridge.api.workers_ai.replies import RestErrors, WorkersAiForm, enveloped
from http_bridge.protocol.to_grpc import run_request
from http_bridge.protocol.validation import bad_input, load


class RestSurface:
    """The model stands in the path."""

    errors = RestErrors()

    def read(self, call: Call) -> Job:
        document = load(call.data, call.max_bytes)
        if (
            document.get("messages") is None
            and document.get("prompt") is None
            and isinstance(document.get("input"), dict)
        ):
            # As the documentation of the first weeks had it.
            document = document["input"]
        return _job(call, document, check_model_name(call.model))


class GenericSurface:
    """Model and input stand in the body."""

    errors = RestErrors()

    def read(self, call: Call) -> Job:
        model, document = call.bodies.generic(load(call.data, call.max_bytes))
        return _job(call, document, check_model_name(model))


def _job(call: Call, document: dict[str, Any], model: str) -> Job:
    if call.query.get("queueRequest") == "true" or document.get("requests") is not None:
        raise bad_input("batches (queueRequest) are not supported: send each request by itself")
    profile = call.profile
    body = call.bodies.run(document, model=model)
    form = WorkersAiForm(
        profile,
        enveloped,
        has_padding=call.has_padding,
        is_json=body.json_schema is not None,
        has_tools=bool(body.tools),
    )
    return Job(run_request(body, profile, model=model, account=call.account), form, body.stream)
