"""Parses the requests of /ai/run/{model} and /ai/run, Workers AI's REST API."""

from http_bridge.api.base import DirectJob, IncomingRequest, RunJob, check_model_name
from http_bridge.api.responses.requests import is_responses_body
from http_bridge.api.workers_ai.replies import RestErrors
from http_bridge.api.workers_ai.shapes import ENVELOPED, model_job


class RestParser:
    """Parses requests whose path names the model."""

    errors = RestErrors()

    def parse(self, incoming: IncomingRequest) -> RunJob | DirectJob:
        """Return the parsed request. Raises ApiError if the request is invalid."""
        document = incoming.document()
        if (
            document.get("messages") is None
            and document.get("prompt") is None
            and isinstance(document.get("input"), dict)
        ):
            # Workers AI documented this format of a body in its first weeks.
            document = document["input"]
        return model_job(incoming, document, check_model_name(incoming.model), ENVELOPED)


class GenericParser:
    """Parses requests whose body contains the model and its input."""

    errors = RestErrors()

    def parse(self, incoming: IncomingRequest) -> RunJob | DirectJob:
        """Return the parsed request. Raises ApiError if the request is invalid."""
        document = incoming.document()
        if is_responses_body(document) and isinstance(document.get("model"), str):
            model = document["model"]
        else:
            model, document = incoming.bodies.generic(document)
        return model_job(incoming, document, check_model_name(model), ENVELOPED)
