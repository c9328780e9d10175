"""Reads the bodies of embedding requests, in Workers AI's formats and in OpenAI's. Does not depend on HTTP or gRPC.

Workers AI's formats depend on the model. A model with qwen in its name counts as qwen3-embedding.

    Model              Body                                              Reply

    qwen3-embedding    {queries, documents, text, instruction}           {shape, data}
    other models       {text}                                            {shape, data}
    other models       {contexts: [{text}…]}                             {response: vectors, shape}
    other models       {query, contexts: [{text}…]}                      {response: [{id, score}…]}
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from http_bridge.protocol import embedding_schemas as schemas
from http_bridge.protocol.validation.documents import Validator, bad_field, bad_fields, bad_input

Document = Mapping[str, Any]
Form = Literal["data", "contexts", "scores"]
PoolingName = Literal["mean", "cls"]

# Fields of a body that only embedding models read.
EMBEDDING_FIELDS = ("text", "contexts", "queries", "documents")

_INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"
_TEXT = Validator(schemas.TEXT)
_CONTEXTS = Validator(schemas.CONTEXTS)
_QUERIES = Validator(schemas.QUERIES)
_OPENAI = Validator(schemas.OPENAI_INPUT)


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingBody:
    """A valid body of /ai/run.

    Attributes:
        texts: The texts in the order of the reply. If `form` is "scores", the query is the first one.
        form: The format of the reply.
        pooling: Pooling that the request sets; None: not set.
        refuses_long_texts: Refuse a text that is longer than the model's context instead of truncating it.
    """

    texts: tuple[str, ...]
    form: Form = "data"
    pooling: PoolingName | None = None
    refuses_long_texts: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenAiEmbeddingBody:
    """A valid body of /v1/embeddings. `dimensions`: length of the vectors; None: the model's own."""

    texts: tuple[str, ...]
    is_base64: bool = False
    dimensions: int | None = None


def run_body(document: Document, *, model: str) -> EmbeddingBody:
    """Return the fields of a body of /ai/run for an embedding model.

    Raises:
        ApiError: 400/5006 for an invalid field. The message names the field.
    """
    if _is_qwen(model):
        return _queries(document, model)
    if document.get("text") is None and document.get("contexts") is None:
        raise bad_input("required properties at '/' are 'text'")
    has_contexts = document.get("text") is None
    _check(_CONTEXTS if has_contexts else _TEXT, document)
    if not has_contexts:
        return EmbeddingBody(texts=_list(document["text"]), **_common(document, model))
    contexts = tuple(context["text"] for context in document["contexts"])
    if document.get("query") is None:
        return EmbeddingBody(texts=contexts, form="contexts", **_common(document, model))
    return EmbeddingBody(texts=(document["query"], *contexts), form="scores", **_common(document, model))


def openai_body(document: Document) -> OpenAiEmbeddingBody:
    """Return the fields of a body of /v1/embeddings.

    Raises:
        ApiError: 400/5006 for an invalid field. The message names the field.
    """
    given = document.get("input")
    first = given[0] if isinstance(given, list) and given else None
    if isinstance(first, int | list) and not isinstance(first, bool):
        raise bad_field(
            "/input",
            "has token ids, which belong to another model's tokenizer: send the text itself (in LangChain: "
            "check_embedding_ctx_length=False)",
        )
    _check(_OPENAI, document)
    dimensions = document.get("dimensions")
    return OpenAiEmbeddingBody(
        texts=_list(given),
        is_base64=document.get("encoding_format") == "base64",
        dimensions=None if dimensions is None else int(dimensions),
    )


def _queries(document: Document, model: str) -> EmbeddingBody:
    if all(document.get(name) is None for name in ("queries", "documents", "text")):
        raise bad_input("required properties at '/' are one of 'queries', 'documents', 'text'")
    _check(_QUERIES, {name: value for name, value in document.items() if value is not None})
    instruction = document.get("instruction") or _INSTRUCTION
    queries = tuple(f"Instruct: {instruction}\nQuery:{query}" for query in _list(document.get("queries")))
    texts = (*queries, *_list(document.get("documents")), *_list(document.get("text")))
    return EmbeddingBody(texts=texts, **_common(document, model))


def _common(document: Document, model: str) -> dict[str, Any]:
    truncates = document.get("truncate_inputs")
    # bge-m3 refuses long texts by default. The other models truncate them unless the request forbids it.
    refuses = not truncates if "bge-m3" in model.lower() else truncates is False
    return {"pooling": document.get("pooling"), "refuses_long_texts": refuses}


def _check(validator: Validator, document: Document) -> None:
    if problems := validator.problems(document):
        raise bad_fields(problems)


def _list(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else tuple(value)


def _is_qwen(model: str) -> bool:
    return "qwen" in model.lower()
