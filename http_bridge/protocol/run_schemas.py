"""JSON Schemas of the bodies of batches and of a gateway's steps, for /openapi.json.

Sources: Cloudflare's pages on its batch API, and the types of the Workers runtime.
"""

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
MAX_STEPS = 16
_STEP: Schema = {
    "type": "object",
    "properties": {
        "provider": {"type": "string", "description": "workers-ai; steps of other providers are skipped"},
        "endpoint": {"type": "string", "description": "A model's name, or v1/… for one of OpenAI's routes"},
        "headers": {"type": ["object", "null"]},
        "query": {"type": "object", "description": "The body of the step's own request"},
    },
    "required": ["provider", "endpoint", "query"],
}
STEPS: Schema = {
    "title": "Steps of a gateway, of which the first that succeeds answers",
    "anyOf": [{"type": "array", "minItems": 1, "maxItems": MAX_STEPS, "items": _STEP}, _STEP],
}


def with_batches(single: Schema) -> Schema:
    """Return the schema of a single request, with the schemas of batches as alternatives."""
    return {"type": "object", "anyOf": [*single["anyOf"], _SUBMISSION, _POLL]}
