"""JSON Schemas of request bodies: bodies are validated against them, and /ai/models/schema and /openapi.json publish them.

Draft 2020-12 without $ref, plus one keyword of Tailrace: `maxDepth`, the deepest nesting of arrays and objects. A field that
is null counts as absent, and unknown keys are accepted. Sources: Workers AI's published schema of llama-2-7b-chat-int8 for
names, types and ranges; OpenAI's API reference for the fields that its routes add.
"""

from typing import Any

from http_bridge.protocol.responses_schema import responses_schema
from tailrace_shared.request_fields import (
    MAX_NAME_LENGTH,
    MAX_ROLE_LENGTH,
    MAX_STOP_LENGTH,
    MAX_STOP_STRINGS,
    MAX_TOOLS,
    MAX_TOP_LOGPROBS,
    SAMPLING_FIELDS,
    Range,
    SamplingField,
)

Schema = dict[str, Any]


def _optional(kind: str, **rest: Any) -> Schema:
    return {"type": [kind, "null"], **rest}


def _integer(minimum: int, maximum: int | None = None, **rest: Any) -> Schema:
    return _optional("integer", minimum=minimum, **({} if maximum is None else {"maximum": maximum}), **rest)


def _sampling(field: SamplingField, accepted: Range) -> Schema:
    """Return the schema of one sampling parameter with the range `accepted`."""
    schema = _optional(field.kind)
    if accepted.minimum is not None:
        schema["exclusiveMinimum" if accepted.is_above else "minimum"] = accepted.minimum
    if accepted.maximum is not None:
        schema["maximum"] = accepted.maximum
    if field.shown_default is not None:
        schema["default"] = field.shown_default
    if field.description:
        schema["description"] = field.description
    return schema


_TEXT_PART: Schema = {
    "type": "object",
    "properties": {"type": {"enum": ["text"]}, "text": {"type": "string"}},
    "required": ["type", "text"],
}
_CONTENT: Schema = {"type": ["string", "array"], "items": _TEXT_PART}
_TOOL_CALL: Schema = {
    "type": "object",
    "description": "A call as OpenAI writes it (function) or as Workers AI does (name, arguments)",
    "properties": {
        "id": _optional("string", maxLength=MAX_NAME_LENGTH),
        "type": {"enum": ["function", None]},
        "function": {
            "type": ["object", "null"],
            "properties": {
                "name": {"type": "string", "minLength": 1, "maxLength": MAX_NAME_LENGTH},
                "arguments": {"type": ["string", "object", "null"]},
            },
            "required": ["name"],
        },
        "name": _optional("string", minLength=1, maxLength=MAX_NAME_LENGTH),
        "arguments": {"type": ["string", "object", "null"]},
    },
}
_MESSAGE: Schema = {
    "type": "object",
    "properties": {
        "role": {"type": "string", "minLength": 1, "maxLength": MAX_ROLE_LENGTH},
        "content": {**_CONTENT, "type": ["string", "array", "null"]},
        "name": _optional("string", maxLength=MAX_NAME_LENGTH),
        "tool_call_id": _optional("string", maxLength=MAX_NAME_LENGTH),
        "tool_calls": _optional("array", items=_TOOL_CALL, maxItems=MAX_TOOLS),
    },
    # A message that only calls a tool, and the message of a tool without output, may have no content.
    "if": {"properties": {"role": {"enum": ["assistant", "tool"]}}, "required": ["role"]},
    "else": {"required": ["role", "content"], "properties": {"content": {"type": ["string", "array"]}}},
}
_TOOL_CHOICE: Schema = {
    "type": ["string", "object", "null"],
    "description": "none, auto, required, or {type: function, function: {name}}",
    "if": {"type": "string"},
    "then": {"enum": ["none", "auto", "required"]},
    "else": {
        "if": {"type": "object"},
        "then": {
            "properties": {
                "type": {"enum": ["function"]},
                "function": {
                    "type": "object",
                    "properties": {"name": {"type": "string", "minLength": 1}},
                    "required": ["name"],
                },
            },
            "required": ["type", "function"],
        },
    },
}
_STOP: Schema = {
    "type": ["string", "array", "null"],
    "minLength": 1,
    "maxLength": MAX_STOP_LENGTH,
    "maxItems": MAX_STOP_STRINGS,
    "items": {"type": "string", "minLength": 1, "maxLength": MAX_STOP_LENGTH},
    "description": "Ends the reply before the string that is complete first",
}
_OPTIONS: Schema = {
    "type": ["object", "null"],
    "properties": {"rejectIfBusy": _optional("boolean", description="429 rather than wait for a slot")},
}
_SAMPLING: Schema = {
    "stream": _optional("boolean", default=False),
    **{field.name: _sampling(field, field.rest) for field in SAMPLING_FIELDS},
    "stop": _STOP,
    "options": _OPTIONS,
}
_NEVER_LORA: Schema = _optional("string", description="Accepted by no model here: 405 with code 5005")

_STREAM_OPTIONS: Schema = {
    "type": ["object", "null"],
    "properties": {"include_usage": _optional("boolean"), "include_obfuscation": _optional("boolean")},
}
_ONE: Schema = {"type": ["integer", "null"], "minimum": 1, "maximum": 1, "description": "One choice for each request"}
_OPENAI: Schema = {
    "model": {"type": "string", "minLength": 1, "maxLength": MAX_NAME_LENGTH},
    **{field.name: _sampling(field, field.openai) for field in SAMPLING_FIELDS if field.openai is not None},
    "n": _ONE,
    "stream_options": _STREAM_OPTIONS,
    "logit_bias": {"type": ["object", "null"], "maxProperties": 0, "description": "Not supported"},
}


class Inputs:
    """The schemas of one bridge's request bodies.

    Attributes:
        prompt: Body of /ai/run with `prompt`.
        messages: Body of /ai/run with `messages`.
        run: Body of /ai/run: `prompt` or `messages`.
        generic: Body of /ai/run without a model in the path.
        chat: Body of OpenAI's chat completions.
        completion: Body of OpenAI's completions.
        responses: Body of OpenAI's responses.
    """

    def __init__(self, *, max_messages: int, max_schema_depth: int) -> None:
        """Build the schemas.

        Args:
            max_messages: Largest number of messages in a conversation.
            max_schema_depth: Deepest nesting of a JSON Schema inside a request.
        """
        sampling = {**_SAMPLING, "response_format": _response_format(max_schema_depth)}
        openai = {**sampling, **_OPENAI}
        conversation: Schema = {
            "messages": {"type": "array", "minItems": 1, "maxItems": max_messages, "items": _MESSAGE},
            "tools": _optional("array", items=_tool(max_schema_depth), maxItems=MAX_TOOLS),
            "tool_choice": _TOOL_CHOICE,
        }
        self.prompt = _prompt(sampling)
        self.messages = _messages(conversation, sampling)
        self.run: Schema = {"type": "object", "anyOf": [self.prompt, self.messages]}
        self.generic = _GENERIC
        self.chat = _chat(conversation, openai)
        self.completion = _completion(openai)
        self.responses = responses_schema(
            {
                **{field.name: _sampling(field, field.openai or field.rest) for field in SAMPLING_FIELDS},
                "stop": _STOP,
                "options": _OPTIONS,
            },
            max_messages=max_messages,
            max_schema_depth=max_schema_depth,
        )


def _response_format(max_schema_depth: int) -> Schema:
    schema = {"type": ["object", "boolean"], "maxDepth": max_schema_depth}
    return {
        "type": ["object", "null"],
        "properties": {"type": {"enum": ["text", "json_object", "json_schema"]}, "json_schema": {}},
        "required": ["type"],
        "if": {"properties": {"type": {"const": "json_schema"}}, "required": ["type"]},
        "then": {"required": ["type", "json_schema"], "properties": {"json_schema": schema}},
    }


def _tool(max_schema_depth: int) -> Schema:
    function: Schema = {
        "type": "object",
        "properties": {
            "name": {"type": "string", "minLength": 1, "maxLength": MAX_NAME_LENGTH},
            "description": _optional("string"),
            "parameters": _optional("object", maxDepth=max_schema_depth),
        },
        "required": ["name"],
    }
    return {
        "type": "object",
        "description": "A function, as such or in OpenAI's form",
        "if": {"properties": {"function": {"type": "object"}}, "required": ["function"]},
        "then": {"properties": {"type": {"enum": ["function", None]}, "function": function}},
        "else": function,
    }


def _prompt(sampling: Schema) -> Schema:
    raw = "The prompt as it is, without the model's chat template"
    return {
        "title": "Prompt",
        "type": "object",
        "properties": {
            "prompt": {"type": "string", "minLength": 1},
            "raw": _optional("boolean", default=False, description=raw),
            "lora": _NEVER_LORA,
            **sampling,
        },
        "required": ["prompt"],
    }


def _messages(conversation: Schema, sampling: Schema) -> Schema:
    embedded = "Embedded functions run in the Worker"
    return {
        "title": "Messages",
        "type": "object",
        "properties": {
            **conversation,
            "functions": {"type": ["array", "null"], "maxItems": 0, "description": embedded},
            "lora": _NEVER_LORA,
            **sampling,
        },
        "required": ["messages"],
    }


def _chat(conversation: Schema, openai: Schema) -> Schema:
    return {
        "title": "Chat completion",
        "type": "object",
        "properties": {
            **openai,
            **conversation,
            "max_completion_tokens": _integer(1),
            "logprobs": _optional("boolean"),
            "top_logprobs": _integer(0, MAX_TOP_LOGPROBS),
        },
        "required": ["model", "messages"],
    }


def _completion(openai: Schema) -> Schema:
    prompt = {"minLength": 1, "minItems": 1, "maxItems": 1, "items": {"type": "string", "minLength": 1}}
    return {
        "title": "Completion",
        "type": "object",
        "properties": {
            **openai,
            "prompt": {"type": ["string", "array"], **prompt},
            "logprobs": _integer(0, MAX_TOP_LOGPROBS),
            "echo": _optional("boolean"),
            "best_of": _ONE,
            "suffix": {"type": ["string", "null"], "maxLength": 0, "description": "Not supported"},
        },
        "required": ["model", "prompt"],
    }


_GENERIC: Schema = {
    "title": "Generic run",
    "type": "object",
    "properties": {
        "model": {"type": "string", "minLength": 1, "maxLength": MAX_NAME_LENGTH},
        "input": {"type": "object"},
        "options": {"type": ["object", "null"]},
    },
    "required": ["model", "input"],
}
