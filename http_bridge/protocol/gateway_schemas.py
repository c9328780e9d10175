"""JSON Schema of a gateway's universal request, for /openapi.json. Source: the types of the Workers runtime."""

from http_bridge.protocol.schemas import Schema

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
