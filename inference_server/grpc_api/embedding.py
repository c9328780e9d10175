"""Validates embedding requests, and converts them and their vectors between inference.proto and the engine."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from inference_server.errors import FieldViolation, InvalidField
from tailrace.v1 import inference_pb2 as pb
from tailrace_shared.request_fields import MAX_EMBEDDED_TEXTS, MAX_NAME_LENGTH

if TYPE_CHECKING:  # these modules import torch, which takes seconds
    from inference_server.embedding.encoder import Vectors
    from inference_server.embedding.pooling_names import Pooling
    from inference_server.serving.hosted_embedder import HostedEmbedder, PreparedTexts

# Longest list of violations in an error. Errors are sent in headers, and a request may have thousands of invalid texts.
_MAX_VIOLATIONS = 16
_POOLINGS: "dict[int, Pooling | None]" = {
    pb.POOLING_UNSPECIFIED: None,
    pb.POOLING_MEAN: "mean",
    pb.POOLING_CLS: "cls",
}


def check_texts(request: pb.EmbedRequest) -> None:
    """Validate the parts of a request that do not depend on the model.

    Raises:
        InvalidField: The error lists the first 16 invalid fields.
    """
    violations = []
    if not 1 <= len(request.model) <= MAX_NAME_LENGTH:
        violations.append(FieldViolation("model", f"is required, and has at most {MAX_NAME_LENGTH} characters"))
    if not 1 <= len(request.texts) <= MAX_EMBEDDED_TEXTS:
        violations.append(FieldViolation("texts", f"must have 1 to {MAX_EMBEDDED_TEXTS} texts"))
    else:
        violations += [
            FieldViolation(f"texts[{place}]", "must not be empty")
            for place, text in enumerate(request.texts)
            if not text
        ]
    if request.pooling not in _POOLINGS:
        violations.append(FieldViolation("pooling", "must be MEAN or CLS"))
    if request.HasField("dimensions") and not request.dimensions:
        violations.append(FieldViolation("dimensions", "must be at least 1"))
    if len(request.account) > MAX_NAME_LENGTH:
        violations.append(FieldViolation("account", f"must have at most {MAX_NAME_LENGTH} characters"))
    if violations:
        raise InvalidField(*violations[:_MAX_VIOLATIONS])


def prepared_texts(request: pb.EmbedRequest, model: "HostedEmbedder") -> "PreparedTexts":
    """Return the tokenised texts of a request that has passed `check_texts`.

    Tokenising a megabyte of text takes about a second, so this must not run on the event loop.

    Raises:
        InvalidField: The model has fewer than the requested dimensions, or a text has no tokens, or a token id outside
            the model's vocabulary.
        PromptTooLong: A text is too long, and the request refuses long texts.
    """
    return model.prepare(
        request.texts,
        pooling=_POOLINGS[request.pooling],
        dimensions=request.dimensions if request.HasField("dimensions") else None,
        refuses_long_texts=request.refuse_long_texts,
    )


def embed_response(vectors: "Vectors", prompt_tokens: int) -> pb.EmbedResponse:
    """Return the message with all vectors. `prompt_tokens`: total number of tokens of the texts."""
    embeddings: Iterable[pb.Embedding] = (pb.Embedding(values=vector.tolist()) for vector in vectors)
    return pb.EmbedResponse(embeddings=embeddings, prompt_tokens=prompt_tokens)


def embedder_info(model: "HostedEmbedder") -> pb.Model:
    """Return the model's entry in the response of ListModels."""
    return pb.Model(
        name=model.entry.name,
        description=model.entry.description,
        context_length=model.context_length,
        weights=str(model.entry.weights),
        precision=model.precision,
        window=model.context_length,
        stands_in=model.entry.stands_in,
        task=pb.TASK_TEXT_EMBEDDING,
        dimensions=model.dimensions,
    )
