"""Parses the requests of /ai/run/{model} and /ai/run, Workers AI's REST API."""

from typing import Any

from http_bridge.api.base import IncomingRequest, RunJob, check_model_name
from http_bridge.api.responses.requests import is_responses_body, responses_job
from http_bridge.api.workers_ai.replies import RestErrors, WorkersAiWriter, enveloped
from http_bridge.protocol.to_grpc import run_request
from http_bridge.protocol.validation import bad_input


class RestParser:
    """Parses requests whose path names the model."""

    errors = RestErrors()

    def parse(self, incoming: IncomingRequest) -> RunJob:
        """Return the parsed request. Raises ApiError if the request is invalid."""
        document = incoming.document()
        if (
            document.get("messages") is None
            and document.get("prompt") is None
            and isinstance(document.get("input"), dict)
        ):
            # In its first weeks, Workers AI documented this body.
            document = document["input"]
        return _job(incoming, document, check_model_name(incoming.model))


class GenericParser:
    """Parses requests whose body contains the model and its input."""

    errors = RestErrors()

    def parse(self, incoming: IncomingRequest) -> RunJob:
        """Return the parsed request. Raises ApiError if the request is invalid."""
        document = incoming.document()
        if is_responses_body(document):
            return responses_job(incoming, document, wrap=enveloped)
        model, document = incoming.bodies.generic(document)
        return _job(incoming, document, check_model_name(model))


def _job(incoming: IncomingRequest, document: dict[str, Any], model: str) -> RunJob:
    if incoming.query.get("queueRequest") == "true" or document.get("requests") is not None:
        raise bad_input("batches (queueRequest) are not supported: send each request by itself")
    if is_responses_body(document):
        return responses_job(incoming, document, wrap=enveloped, model=model)
    profile = incoming.profile
    body = incoming.bodies.run(document, model=model)
    writer = WorkersAiWriter(
        profile,
        enveloped,
        has_padding=incoming.has_padding,
        is_json=body.json_schema is not None,
        has_tools=bool(body.tools),
    )
    return RunJob(run_request(body, profile, model=model, account=incoming.account), writer, body.stream)
