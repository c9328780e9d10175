"""JSON Schema of the body of OpenAI's Responses API. Other modules check the types of items and tools.

Source: OpenAI's API reference for names, types and ranges. Unknown keys are accepted, and a null counts as absent.
"""

from collections.abc import Mapping
from typing import Any

from tailrace_shared.request_fields import MAX_NAME_LENGTH, MAX_ROLE_LENGTH, MAX_TOP_LOGPROBS, SAMPLING_FIELDS

Schema = dict[str, Any]

# The value of `include` for log probabilities.
RESPONSES_LOGPROBS = "message.output_text.logprobs"
# A turn of a conversation is up to this many items: thoughts, text, calls and their results.
_ITEMS_PER_MESSAGE = 4
# Fields with the schemas of OpenAI's other routes. OpenAI's Responses API lacks some of them.
_SHARED = (*(field.name for field in SAMPLING_FIELDS), "logit_bias", "stop", "options", "lora")
_SUMMARIES = ("auto", "concise", "detailed", None)
_NOT_STORED = "Responses are not stored"
_FLAG: Schema = {"type": ["boolean", "null"]}
_TEXT: Schema = {"type": ["string", "null"]}
_OBJECT: Schema = {"type": ["object", "null"]}
_PART: Schema = {
    "type": "object",
    "properties": {"type": {"type": "string"}, "text": {"type": "string"}, "refusal": {"type": "string"}},
    "required": ["type"],
}
_PARTS_OR_TEXT: Schema = {"type": ["string", "array", "null"], "items": _PART}
_NAME: Schema = {"type": ["string", "null"], "maxLength": MAX_NAME_LENGTH}
_ITEM: Schema = {
    "type": "object",
    "description": "A message, a function call, its result, or thoughts",
    "properties": {
        "type": _TEXT,
        "role": {"type": ["string", "null"], "minLength": 1, "maxLength": MAX_ROLE_LENGTH},
        "content": _PARTS_OR_TEXT,
        "call_id": _NAME,
        "name": {**_NAME, "minLength": 1},
        "namespace": _NAME,
    },
}
_FORMAT: Schema = {
    "type": ["object", "null"],
    "properties": {"type": {"enum": ["text", "json_object", "json_schema"]}},
    "required": ["type"],
}


def responses_schema(fields: Mapping[str, Schema], *, max_messages: int, max_schema_depth: int) -> Schema:
    """Return the JSON Schema of the body.

    Args:
        fields: Schemas of the fields of OpenAI's other routes.
        max_messages: Largest number of messages in a conversation.
        max_schema_depth: Deepest nesting of a JSON Schema inside a request.
    """
    schema = {"type": "object", "maxDepth": max_schema_depth}
    return {
        "title": "Response",
        "type": "object",
        "properties": {
            "model": {"type": "string", "minLength": 1, "maxLength": MAX_NAME_LENGTH},
            "input": {
                "type": ["string", "array"],
                "minItems": 1,
                "maxItems": max_messages * _ITEMS_PER_MESSAGE,
                "items": _ITEM,
            },
            "instructions": _TEXT,
            **{name: fields[name] for name in _SHARED},
            **_FIELDS,
            "tools": _tools(max_schema_depth),
            "text": {
                "type": ["object", "null"],
                "properties": {
                    "format": {
                        **_FORMAT,
                        "if": {"properties": {"type": {"const": "json_schema"}}, "required": ["type"]},
                        "then": {"required": ["type", "schema"], "properties": {"schema": schema}},
                    },
                    "verbosity": _TEXT,
                },
            },
        },
        "required": ["model", "input"],
    }


_FIELDS: Schema = {
    "stream": _FLAG,
    "stream_options": {"type": ["object", "null"], "properties": {"include_obfuscation": _FLAG}},
    "max_output_tokens": {"type": ["integer", "null"], "minimum": 1},
    "max_tokens": {"type": ["integer", "null"], "minimum": 1, "description": "Another name of max_output_tokens"},
    "top_logprobs": {"type": ["integer", "null"], "minimum": 0, "maximum": MAX_TOP_LOGPROBS},
    "include": {"type": ["array", "null"], "items": {"type": "string"}},
    "tool_choice": {"type": ["string", "object", "null"]},
    "parallel_tool_calls": _FLAG,
    "chat_template_kwargs": _OBJECT,
    "reasoning": {
        "type": ["object", "null"],
        "properties": {
            "effort": _TEXT,
            "summary": {"enum": list(_SUMMARIES)},
            "generate_summary": {"enum": list(_SUMMARIES)},
        },
    },
    "metadata": {"type": ["object", "null"], "additionalProperties": {"type": ["string", "number", "boolean", "null"]}},
    "truncation": {"enum": ["disabled", "auto", None], "description": "`auto` is refused"},
    "store": {"type": ["boolean", "null"], "description": f"{_NOT_STORED}: true is refused"},
    "background": {"type": ["boolean", "null"], "description": f"{_NOT_STORED}: true is refused"},
    "previous_response_id": {"type": ["string", "null"], "description": f"{_NOT_STORED}: refused"},
    "conversation": {"type": ["string", "object", "null"], "description": f"{_NOT_STORED}: refused"},
    "prompt": {"type": ["object", "null"], "description": f"{_NOT_STORED}: refused"},
    "user": _TEXT,
    "safety_identifier": _TEXT,
    "prompt_cache_key": _TEXT,
    "service_tier": _TEXT,
}


def _tools(max_schema_depth: int) -> Schema:
    tool: Schema = {
        "type": "object",
        "description": "A function, a custom tool, or a namespace of them. Hosted tools are left out.",
        "properties": {
            "type": _TEXT,
            "name": {**_NAME, "minLength": 1},
            "description": _TEXT,
            "parameters": {**_OBJECT, "maxDepth": max_schema_depth},
            "tools": {"type": ["array", "null"], "items": {"type": "object"}},
        },
    }
    return {"type": ["array", "null"], "items": tool}
