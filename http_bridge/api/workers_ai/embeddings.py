"""Parses embedding requests of /ai/run."""

import re
from collections.abc import Callable
from typing import Any

from http_bridge.api.base import IncomingRequest, check_model_name
from http_bridge.api.embeddings.job import EmbeddingJob
from http_bridge.api.embeddings.replies import workers_ai_result
from http_bridge.api.workers_ai.batches import is_batch_request
from http_bridge.api.workers_ai.replies import RestErrors, enveloped_json
from http_bridge.protocol.embedding_body import EMBEDDING_FIELDS, EmbeddingBody, run_body
from tailrace.v1.inference_pb2 import EmbedRequest, EmbedResponse, Pooling

_Document = dict[str, Any]
_Wrap = Callable[[bytes], bytes]

_GENERATION_FIELDS = ("prompt", "messages")
_POOLINGS = {None: Pooling.POOLING_UNSPECIFIED, "mean": Pooling.POOLING_MEAN, "cls": Pooling.POOLING_CLS}
# The models that Workers AI pools by the mean of all tokens unless a request sets `pooling`.
_MEAN_BY_DEFAULT = re.compile(r"@\w+/baai/bge-(small|base|large)-en-v1\.5")


class RestEmbeddingParser:
    """Parses requests whose path names the model."""

    errors = RestErrors()

    def target(self, incoming: IncomingRequest) -> tuple[str, bool | None]:
        """Return the model of the path, and whether the body is an embedding request. Raises ApiError for invalid JSON."""
        return incoming.model, is_embedding(incoming, incoming.document())

    def parse(self, incoming: IncomingRequest) -> EmbeddingJob:
        """Return the parsed request. Raises ApiError if the request is invalid."""
        return embedding_job(incoming, incoming.document(), check_model_name(incoming.model), enveloped_json)


class GenericEmbeddingParser:
    """Parses requests whose body contains the model and its input."""

    errors = RestErrors()

    def target(self, incoming: IncomingRequest) -> tuple[str, bool | None]:
        """Return the model of the body, and whether its input is an embedding request. Raises ApiError as `parse` does."""
        model, document = incoming.bodies.generic(incoming.document())
        return model, is_embedding(incoming, document)

    def parse(self, incoming: IncomingRequest) -> EmbeddingJob:
        """Return the parsed request. Raises ApiError if the request is invalid."""
        model, document = incoming.bodies.generic(incoming.document())
        return embedding_job(incoming, document, check_model_name(model), enveloped_json)


def is_embedding(incoming: IncomingRequest, document: _Document) -> bool | None:
    """Return True if the body has the fields of an embedding request alone; None if it is a batch."""
    if is_batch_request(incoming, document):
        return None
    has_generation = any(document.get(name) is not None for name in _GENERATION_FIELDS)
    return not has_generation and any(document.get(name) is not None for name in EMBEDDING_FIELDS)


def embedding_job(incoming: IncomingRequest, document: _Document, model: str, wrap: _Wrap) -> EmbeddingJob:
    """Return the parsed request for a body. Raises ApiError if it is invalid. `wrap`: adds an envelope, or gzips."""
    body = run_body(document, model=model)
    request = embed_request(incoming, body, model)
    shown = {Pooling.POOLING_MEAN: "mean", Pooling.POOLING_CLS: "cls"}.get(request.pooling)

    def write(response: EmbedResponse) -> bytes:
        return wrap(workers_ai_result(response, body, shown))  # type: ignore[arg-type]

    return EmbeddingJob(request, write)


def embed_request(incoming: IncomingRequest, body: EmbeddingBody, model: str) -> EmbedRequest:
    """Return the message to the inference server. Models that Workers AI pools by the mean get that pooling."""
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
