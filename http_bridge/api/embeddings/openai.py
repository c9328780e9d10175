"""Parses the requests of /v1/embeddings, OpenAI's API."""

from functools import partial

from http_bridge.api.base import IncomingRequest, check_model_name
from http_bridge.api.embeddings.job import EmbeddingJob
from http_bridge.api.embeddings.replies import openai_reply
from http_bridge.api.openai.errors import OpenAiErrors
from http_bridge.protocol.embedding_body import openai_body
from tailrace.v1.inference_pb2 import EmbedRequest


class OpenAiEmbeddingParser:
    """Parses embedding requests in OpenAI's format. The server truncates texts longer than the model's context."""

    errors = OpenAiErrors()

    def parse(self, incoming: IncomingRequest) -> EmbeddingJob:
        """Return the parsed request. Raises ApiError if the request is invalid."""
        document = incoming.document()
        body = openai_body(document)
        model = check_model_name(document["model"])
        request = EmbedRequest(model=model, texts=body.texts, account=incoming.account, dimensions=body.dimensions)
        return EmbeddingJob(request, partial(openai_reply, body=body, model=model))
