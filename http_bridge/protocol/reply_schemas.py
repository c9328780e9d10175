"""JSON Schemas of replies and errors, for /openapi.json and /ai/models/schema. Replies are not checked against them."""

from http_bridge.protocol.schemas import Schema

ANY_OBJECT: Schema = {"type": "object"}

_USAGE: Schema = {
    "type": "object",
    "properties": {name: {"type": "integer"} for name in ("prompt_tokens", "completion_tokens", "total_tokens")},
}
_RESPONSE: Schema = {
    "type": "object",
    "contentType": "application/json",
    "properties": {
        "response": {"type": ["string", "object", "array", "number", "boolean", "null"]},
        "reasoning_content": {"type": "string"},
        "tool_calls": {"type": "array", "items": {"type": "object"}},
        "usage": _USAGE,
    },
    "required": ["response"],
}
_CHOICES: Schema = {
    "type": "object",
    "contentType": "application/json",
    "description": 'OpenAI\'s chat completion, for models with shape = "choices"',
    "properties": {"object": {"const": "chat.completion"}, "choices": {"type": "array"}, "usage": _USAGE},
    "required": ["id", "object", "created", "model", "choices", "usage"],
}
# A complete reply of the Responses API.
RESPONSE: Schema = {
    "type": "object",
    "contentType": "application/json",
    "properties": {
        "object": {"const": "response"},
        "status": {"enum": ["completed", "incomplete"]},
        "output": {"type": "array", "items": {"type": "object", "required": ["id", "type"]}},
    },
    "required": ["id", "object", "created_at", "model", "status", "output", "tools", "usage"],
}
_STREAM: Schema = {"type": "string", "contentType": "text/event-stream", "format": "binary"}
# The reply of /ai/run: an object, or a stream of server-sent events.
RUN_OUTPUT: Schema = {"oneOf": [_RESPONSE, _STREAM]}
# The reply of /ai/run for a model with shape = "choices".
CHOICES_OUTPUT: Schema = {"oneOf": [_CHOICES, _STREAM]}
# The reply of /ai/run for a model with shape = "responses".
RESPONSES_OUTPUT: Schema = {"oneOf": [RESPONSE, _STREAM]}
# Source of the batches' schemas: Cloudflare's pages on its batch API.
_BATCH_STATUS: Schema = {
    "type": "object",
    "properties": {
        "status": {"enum": ["queued", "running"]},
        "request_id": {"type": "string"},
        "model": {"type": "string"},
    },
    "required": ["status", "request_id", "model"],
}
_BATCH_RESULTS: Schema = {
    "type": "object",
    "properties": {
        "responses": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "id": {"type": "integer"},
                    "result": {"type": "object"},
                    "success": {"type": "boolean"},
                    "external_reference": {},
                    "error": {"type": "object", "description": "Code and message, if the request failed"},
                },
                "required": ["id", "result", "success", "external_reference"],
            },
        },
        "usage": _USAGE,
    },
    "required": ["responses", "usage"],
}
# Cloudflare's envelope of a successful reply, around any result.
ENVELOPE: Schema = {
    "type": "object",
    "properties": {
        "result": {},
        "success": {"const": True},
        "errors": {"type": "array", "maxItems": 0},
        "messages": {"type": "array"},
    },
    "required": ["result", "success", "errors", "messages"],
}
_RUN_RESULT: Schema = {"anyOf": [_RESPONSE, _CHOICES, RESPONSE, _BATCH_STATUS, _BATCH_RESULTS]}
RUN_ENVELOPE: Schema = {**ENVELOPE, "properties": {**ENVELOPE["properties"], "result": _RUN_RESULT}}
# models/search: Cloudflare's envelope, or OpenRouter's format.
MODELS_REPLY: Schema = {"anyOf": [ENVELOPE, {"type": "object", "required": ["data"]}]}
# A complete reply of chat completions or completions.
OPENAI_REPLY: Schema = {"type": "object", "required": ["id", "object", "created", "model", "choices", "usage"]}
_ENTRY: Schema = {
    "type": "object",
    "properties": {"code": {"type": "integer"}, "message": {"type": "string"}},
    "required": ["code", "message"],
}
# Cloudflare's envelope of an error, from its router (`result` is null) or from a model (`result` is empty).
REST_ERROR: Schema = {
    "type": "object",
    "properties": {
        "success": {"const": False},
        "errors": {"type": "array", "minItems": 1, "items": _ENTRY},
        "result": {"type": ["object", "null"]},
        "messages": {"type": "array"},
    },
    "required": ["success", "errors", "result", "messages"],
}
OPENAI_ERROR: Schema = {
    **REST_ERROR,
    "properties": {
        **REST_ERROR["properties"],
        "error": {
            "type": "object",
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": "string"},
            },
            "required": ["message", "type", "param", "code"],
        },
    },
    "required": [*REST_ERROR["required"], "error"],
}
BINDING_ERROR: Schema = {
    "type": "object",
    "properties": {
        "name": {"const": "AiError"},
        "internalCode": {"type": "integer"},
        "httpCode": {"type": "integer"},
        "message": {"type": "string"},
        "description": {"type": "string"},
        "requestId": {"type": "string"},
    },
    "required": ["name", "internalCode", "httpCode", "message", "description", "requestId"],
}
# An error of a gateway, or of one of its steps in the format of the step's own route.
GATEWAY_ERROR: Schema = {
    "type": "object",
    "properties": {
        "success": {"const": False},
        "errors": {"type": "array", "minItems": 1, "items": _ENTRY},
        "messages": {"type": "array"},
    },
    "required": ["success", "errors", "messages"],
}
