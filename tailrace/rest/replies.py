"""Reads the bridge's replies that are one JSON body: vectors and the list of models."""

import base64
import json
import sys
from array import array
from collections.abc import Sequence
from typing import Any

import httpx2

from tailrace.errors import ConnectionFailedError
from tailrace.rest.errors import request_id_of, response_error
from tailrace.types import Embeddings, Model

# Exceptions from reading a JSON document with a structure that no bridge sends.
_MALFORMED = (ValueError, LookupError, TypeError, AttributeError)


def embed_body(texts: Sequence[str], model: str, dimensions: int | None) -> dict[str, Any]:
    """Return the body of a request for vectors in base64, which is exact and much shorter than decimal numbers."""
    fields = {"model": model, "input": list(texts), "encoding_format": "base64"}
    return fields | ({} if dimensions is None else {"dimensions": dimensions})


def embeddings(response: httpx2.Response, model: str) -> Embeddings:
    """Return the vectors of the reply. Raises TailraceError if it is an error or malformed."""
    document = _document(response)
    try:
        vectors = [_vector(each["embedding"]) for each in document["data"]]
        return Embeddings(vectors, document["usage"]["prompt_tokens"], model)
    except _MALFORMED:
        raise _stranger(response) from None


def models(response: httpx2.Response) -> list[Model]:
    """Return the models of the reply, with their adapters. Raises TailraceError if it is an error or malformed."""
    entries = _document(response)["data"]
    adapters: dict[str, list[str]] = {}
    try:
        for entry in entries:
            if parent := entry.get("parent"):
                adapters.setdefault(parent, []).append(entry["id"])
        return [_model(entry, adapters.get(entry["id"], ())) for entry in entries if not entry.get("parent")]
    except _MALFORMED:
        raise _stranger(response) from None


def _model(entry: dict[str, Any], adapters: Sequence[str]) -> Model:
    dimensions = entry.get("dimensions", 0)
    return Model(
        name=entry["id"],
        description=entry.get("description", ""),
        task="text-embeddings" if dimensions else "text-generation",
        window=entry.get("context_length", 0),
        max_output_tokens=entry.get("max_output_tokens", 0),
        dimensions=dimensions,
        adapters=tuple(adapters),
    )


def _vector(text: str) -> list[float]:
    numbers = array("f", base64.b64decode(text))
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tolist()


def _document(response: httpx2.Response) -> dict[str, Any]:
    if response.status_code != 200:
        raise response_error(response)
    try:
        document: dict[str, Any] = json.loads(response.content)
        document["data"][:0]
    except _MALFORMED:
        raise _stranger(response) from None
    return document


def _stranger(response: httpx2.Response) -> ConnectionFailedError:
    sentence = f"{response.url.host} did not answer as Tailrace does."
    return ConnectionFailedError(sentence, http_status=200, request_id=request_id_of(response) or None)
