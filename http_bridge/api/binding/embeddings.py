"""Parses embedding requests of a Worker's binding, in every version of the binding's protocol.

The SDK of 2023 sends the texts as one tensor, `input_text`, and reads the tensor `embeddings` of the reply.
"""

from typing import Any

from http_bridge.api.base import IncomingRequest
from http_bridge.api.binding.headers import is_zipped, model_of
from http_bridge.api.embeddings.job import EmbeddingJob
from http_bridge.api.embeddings.replies import tensors
from http_bridge.api.workers_ai.embeddings import embed_request, embedding_job, is_embedding
from http_bridge.api.workers_ai.replies import BindingErrors
from http_bridge.protocol.embedding_body import run_body
from http_bridge.protocol.validation.documents import bad_input, zipped

_TENSOR = "input_text"


class BindingEmbeddingParser:
    """Parses requests of a Worker's binding."""

    errors = BindingErrors()

    def target(self, incoming: IncomingRequest) -> tuple[str, bool | None]:
        """Return the model of the header, and whether the body is an embedding request. Raises ApiError as `parse` does."""
        document = incoming.document()
        if _tensor(document) is not None:
            return model_of(incoming), True
        inputs = document.get("inputs")
        if not isinstance(inputs, dict):
            return model_of(incoming), False
        return model_of(incoming), is_embedding(incoming, {**inputs, "options": document.get("options")})

    def parse(self, incoming: IncomingRequest) -> EmbeddingJob:
        """Return the parsed request. Raises ApiError if the request is invalid."""
        model, document = model_of(incoming), incoming.document()
        if isinstance(document.get("input"), list):
            texts = _tensor(document)
            if texts is None:
                raise bad_input(f"'/input' has no tensor {_TENSOR}")
            body = run_body({"text": texts}, model=model)
            return EmbeddingJob(embed_request(incoming, body, model), tensors)
        inputs = document.get("inputs")
        if not isinstance(inputs, dict):
            raise bad_input("required properties at '/' are 'inputs'")
        return embedding_job(incoming, inputs, model, zipped if is_zipped(incoming) else bytes)


def _tensor(document: dict[str, Any]) -> Any | None:
    """Return the texts of the tensor `input_text`, or None if the body has none."""
    items = document.get("input")
    for item in items if isinstance(items, list) else ():
        if isinstance(item, dict) and item.get("name") == _TENSOR:
            return item.get("value")
    return None
