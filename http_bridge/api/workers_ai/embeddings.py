"""Parses embedding requests of /ai/run and of a Worker's binding, in every version of the binding's protocol.

The SDK of 2023 sends the texts as one tensor, `input_text`, and reads the tensor `embeddings` of the reply.
"""

import re
from collections.abc import Callable
from typing import Any

from http_bridge.api.base import IncomingRequest, check_model_name
from http_bridge.api.binding.headers import is_zipped, model_of
from http_bridge.api.embeddings.job import EmbeddingJob
from http_bridge.api.embeddings.replies import tensors, workers_ai_result
from http_bridge.api.workers_ai.batches import is_batch_request
from http_bridge.api.workers_ai.replies import BindingErrors, RestErrors, enveloped_json
from http_bridge.protocol.embedding_body import EMBEDDING_FIELDS, EmbeddingBody, run_body
from http_bridge.protocol.validation import bad_input, zipped
from tailrace.v1.inference_pb2 import EmbedRequest, EmbedResponse, Pooling

_Document = dict[str, Any]
_Wrap = Callable[[bytes], bytes]

_GENERATION_FIELDS = ("prompt", "messages")
_TENSOR = "input_text"
_POOLINGS = {None: Pooling.POOLING_UNSPECIFIED, "mean": Pooling.POOLING_MEAN, "cls": Pooling.POOLING_CLS}
# The models that Workers AI pools by the mean of all tokens unless a request sets `pooling`.
_MEAN_BY_DEFAULT = re.compile(r"@\w+/baai/bge-(small|base|large)-en-v1\.5")


class RestEmbeddingParser:
    """Parses requests whose path names the model."""

    errors = RestErrors()

    def target(self, incoming: IncomingRequest) -> tuple[str, bool | None]:
        """Return the model of the path, and whether the body is an embedding request. Raises ApiError for invalid JSON."""
        return incoming.model, _is_embedding(incoming, incoming.document())

    def parse(self, incoming: IncomingRequest) -> EmbeddingJob:
        """Return the parsed request. Raises ApiError if the request is invalid."""
        return embedding_job(incoming, incoming.document(), check_model_name(incoming.model), enveloped_json)


class GenericEmbeddingParser:
    """Parses requests whose body contains the model and its input."""

    errors = RestErrors()

    def target(self, incoming: IncomingRequest) -> tuple[str, bool | None]:
        """Return the model of the body, and whether its input is an embedding request. Raises ApiError as `parse` does."""
        model, document = incoming.bodies.generic(incoming.document())
        return model, _is_embedding(incoming, document)

    def parse(self, incoming: IncomingRequest) -> EmbeddingJob:
        """Return the parsed request. Raises ApiError if the request is invalid."""
        model, document = incoming.bodies.generic(incoming.document())
        return embedding_job(incoming, document, check_model_name(model), enveloped_json)


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
        return model_of(incoming), _is_embedding(incoming, {**inputs, "options": document.get("options")})

    def parse(self, incoming: IncomingRequest) -> EmbeddingJob:
        """Return the parsed request. Raises ApiError if the request is invalid."""
        model, document = model_of(incoming), incoming.document()
        if isinstance(document.get("input"), list):
            texts = _tensor(document)
            if texts is None:
                raise bad_input(f"'/input' has no tensor {_TENSOR}")
            body = run_body({"text": texts}, model=model)
            return EmbeddingJob(_request(incoming, body, model), tensors)
        inputs = document.get("inputs")
        if not isinstance(inputs, dict):
            raise bad_input("required properties at '/' are 'inputs'")
        return embedding_job(incoming, inputs, model, zipped if is_zipped(incoming) else bytes)


def _is_embedding(incoming: IncomingRequest, document: _Document) -> bool | None:
    if is_batch_request(incoming, document):
        return None
    has_generation = any(document.get(name) is not None for name in _GENERATION_FIELDS)
    return not has_generation and any(document.get(name) is not None for name in EMBEDDING_FIELDS)


def _tensor(document: _Document) -> Any | None:
    """Return the texts of the tensor `input_text`, or None if the body has none."""
    items = document.get("input")
    for item in items if isinstance(items, list) else ():
        if isinstance(item, dict) and item.get("name") == _TENSOR:
            return item.get("value")
    return None


def embedding_job(incoming: IncomingRequest, document: _Document, model: str, wrap: _Wrap) -> EmbeddingJob:
    """Return the parsed request for a body. Raises ApiError if it is invalid. `wrap`: adds an envelope, or gzips."""
    body = run_body(document, model=model)
    request = _request(incoming, body, model)
    shown = {Pooling.POOLING_MEAN: "mean", Pooling.POOLING_CLS: "cls"}.get(request.pooling)

    def write(response: EmbedResponse) -> bytes:
        return wrap(workers_ai_result(response, body, shown))  # type: ignore[arg-type]

    return EmbeddingJob(request, write)


def _request(incoming: IncomingRequest, body: EmbeddingBody, model: str) -> EmbedRequest:
    pooling = _POOLINGS[body.pooling]
    if body.pooling is None and incoming.profile.pools_bge_by_mean and _MEAN_BY_DEFAULT.fullmatch(model):
        pooling = Pooling.POOLING_MEAN
    return EmbedRequest(
        model=model,
        texts=body.texts,
        pooling=pooling,
        account=incoming.account,
        refuse_long_texts=body.refuses_long_texts,
    )
