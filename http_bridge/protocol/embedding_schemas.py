"""JSON Schemas of embedding requests and replies: Workers AI's published schemas of bge and qwen3-embedding, and OpenAI's.

Bodies are validated against the schemas of requests. /ai/models/schema and /openapi.json publish those of replies too.
"""

from http_bridge.protocol.schemas import Schema
from tailrace_shared.request_fields import MAX_EMBEDDED_TEXTS, MAX_NAME_LENGTH

# Workers AI's largest numbers of texts: in a request, and in each field of a request to qwen3-embedding.
MAX_TEXTS = 100
_MAX_QWEN_TEXTS = 32


def _texts(description: str, most: int = MAX_TEXTS) -> Schema:
    items = {"type": "string", "minLength": 1}
    return {"type": ["string", "array"], "minLength": 1, "minItems": 1, "maxItems": most, "items": items} | {
        "description": description
    }


_TRUNCATE: Schema = {
    "type": ["boolean", "null"],
    "description": "true cuts a text that is longer than the model's context; false refuses it",
}
_POOLING: Schema = {"type": ["string", "null"], "enum": ["mean", "cls", None], "description": "Unset: the model's own"}
TEXT: Schema = {
    "title": "Input Embedding",
    "type": "object",
    "properties": {"text": _texts("The text or the texts to embed"), "pooling": _POOLING, "truncate_inputs": _TRUNCATE},
    "required": ["text"],
}
CONTEXTS: Schema = {
    "title": "Input Query and Contexts",
    "type": "object",
    "properties": {
        "query": {
            "type": ["string", "null"],
            "minLength": 1,
            "description": "Scores every context; unset: their vectors",
        },
        "contexts": {
            "type": "array",
            "minItems": 1,
            "maxItems": MAX_EMBEDDED_TEXTS - 1,
            "items": {
                "type": "object",
                "properties": {"text": {"type": "string", "minLength": 1}},
                "required": ["text"],
            },
        },
        "pooling": _POOLING,
        "truncate_inputs": _TRUNCATE,
    },
    "required": ["contexts"],
}
QUERIES: Schema = {
    "title": "Queries and documents",
    "type": "object",
    "properties": {
        "queries": _texts("Queries, with the instruction in front of each", _MAX_QWEN_TEXTS),
        "instruction": {"type": ["string", "null"], "description": "The task that the queries belong to"},
        "documents": _texts("Documents, without the instruction", _MAX_QWEN_TEXTS),
        "text": _texts("The same as documents", _MAX_QWEN_TEXTS),
        "pooling": _POOLING,
        "truncate_inputs": _TRUNCATE,
    },
    "anyOf": [{"required": ["queries"]}, {"required": ["documents"]}, {"required": ["text"]}],
}
RUN_INPUT: Schema = {"type": "object", "anyOf": [TEXT, CONTEXTS, QUERIES]}

_VECTORS: Schema = {"type": "array", "items": {"type": "array", "items": {"type": "number"}}}
_SHAPE: Schema = {"type": "array", "items": {"type": "number"}}
RUN_OUTPUT: Schema = {
    "type": "object",
    "contentType": "application/json",
    "oneOf": [
        {
            "title": "Output Embedding",
            "properties": {"shape": _SHAPE, "data": _VECTORS, "pooling": {"enum": ["mean", "cls"]}},
            "required": ["shape", "data"],
        },
        {
            "title": "Output Embedding for Contexts",
            "properties": {"response": _VECTORS, "shape": _SHAPE, "pooling": {"enum": ["mean", "cls"]}},
            "required": ["response", "shape"],
        },
        {
            "title": "Output Query",
            "properties": {
                "response": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "properties": {"id": {"type": "integer"}, "score": {"type": "number"}},
                        "required": ["id", "score"],
                    },
                }
            },
            "required": ["response"],
        },
    ],
}

OPENAI_INPUT: Schema = {
    "title": "Embeddings",
    "type": "object",
    "properties": {
        "model": {"type": "string", "minLength": 1, "maxLength": MAX_NAME_LENGTH},
        "input": _texts("The text or the texts to embed", MAX_EMBEDDED_TEXTS),
        "encoding_format": {"type": ["string", "null"], "enum": ["float", "base64", None]},
        "dimensions": {"type": ["integer", "null"], "minimum": 1, "maximum": 2**31 - 1},
        "user": {"type": ["string", "null"], "description": "Accepted without effect"},
    },
    "required": ["model", "input"],
}
OPENAI_OUTPUT: Schema = {"type": "object", "required": ["object", "data", "model", "usage"]}
