"""JSON Schemas of the bodies that submit or poll a batch, for /openapi.json. Sources: Cloudflare's pages on its batch API."""

from http_bridge.protocol.schemas import Schema

_SUBMISSION: Schema = {
    "title": "Batch",
    "type": "object",
    "properties": {
        "requests": {
            "type": "array",
            "minItems": 1,
            "items": {},
            "description": "Bodies of single requests, each with an optional external_reference. Invalid ones fail alone",
        },
        "queueRequest": {"type": ["boolean", "null"], "description": "Also as a query parameter, or in options"},
    },
    "required": ["requests"],
}
_POLL: Schema = {
    "title": "Status or results of a batch",
    "type": "object",
    "properties": {"request_id": {"type": "string", "description": "The id that the submission returned"}},
    "required": ["request_id"],
}


def with_batches(single: Schema) -> Schema:
    """Return the schema of a single request, with those of batches as alternatives."""
    return {"type": "object", "anyOf": [*single["anyOf"], _SUBMISSION, _POLL]}
