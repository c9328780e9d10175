"""What the routes accept, as JSON Schemas: they are what bodies are held to, and what /ai/models/schema and /openapi.json show.

Draft 2020-12, without $ref, and a keyword of ours: `maxDepth`, how deep arrays and objects may be nested. null is as good as
absent everywhere, and unknown keys are no mistake. Sources: Workers AI's published schema of llama-2-7b-chat-int8 for names,
types and ranges; OpenAI's API reference for what its routes add.
"""

from typing import Any

Schema = dict[str, Any]

MAX_STOP_STRINGS = 16
MAX_STOP_LENGTH = 256
MAX_TOP_LOGPROBS = 20
MAX_TOOLS = 128
_MAX_NAME = 256


def _optional(kind: str, **rest: Any) -> Schema:
    return {"type": [kind, "null"], **rest}


def _number(minimum: float, maximum: float, **rest: Any) -> Schema:
    return _optional("number", minimum=minimum, maximum=maximum, **rest)


def _integer(minimum: int, maximum: int | None = None, **rest: Any) -> Schema:
    return _optional("integer", minimum=minimum, **({} if maximum is None else {"maximum": maximum}), **rest)


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
        "id": _optional("string", maxLength=_MAX_NAME),
        "type": {"enum": ["function", None]},
        "function": {
            "type": ["object", "null"],
            "properties": {
                "name": {"type": "string", "minLength": 1, "maxLength": _MAX_NAME},
                "arguments": {"type": ["string", "object", "null"]},
            },
            "required": ["name"],
        },
        "name": _optional("string", minLength=1, maxLength=_MAX_NAME),
        "arguments": {"type": ["string", "object", "null"]},
    },
}
_MESSAGE: Schema = {
    "type": "object",
    "properties": {
        "role": {"type": "string", "minLength": 1, "maxLength": 64},
        "content": {**_CONTENT, "type": ["string", "array", "null"]},
        "name": _optional("string", maxLength=_MAX_NAME),
        "tool_call_id": _optional("string", maxLength=_MAX_NAME),
        "tool_calls": _optional("array", items=_TOOL_CALL, maxItems=MAX_TOOLS),
    },
    # A turn that only called a tool, or a tool that has nothing to say, has no content.
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
    "max_tokens": _integer(1, description="256 by default; in a stream the model's sequence length"),
    "temperature": _number(0, 5, default=0.6),
    "top_p": _number(0.001, 1),
    "top_k": _integer(1, 50),
    "seed": _integer(1, 9_999_999_999),
    "repetition_penalty": _optional("number", exclusiveMinimum=0, maximum=2),
    "frequency_penalty": _number(-2, 2),
    "presence_penalty": _number(-2, 2),
    "stop": _STOP,
    "options": _OPTIONS,
}
_NEVER_LORA: Schema = _optional("string", description="Accepted by no model here: 405 with code 5005")

_USAGE: Schema = {
    "type": "object",
    "properties": {name: {"type": "integer"} for name in ("prompt_tokens", "completion_tokens", "total_tokens")},
}
RUN_OUTPUT: Schema = {
    "oneOf": [
        {
            "type": "object",
            "contentType": "application/json",
            "properties": {
                "response": {"type": ["string", "object", "array", "number", "boolean", "null"]},
                "tool_calls": {"type": "array", "items": {"type": "object"}},
                "usage": _USAGE,
            },
            "required": ["response"],
        },
        {"type": "string", "contentType": "text/event-stream", "format": "binary"},
    ]
}

_STREAM_OPTIONS: Schema = {
    "type": ["object", "null"],
    "properties": {"include_usage": _optional("boolean"), "include_obfuscation": _optional("boolean")},
}
_ONE: Schema = {"type": ["integer", "null"], "minimum": 1, "maximum": 1, "description": "One choice for each request"}
_OPENAI: Schema = {
    "model": {"type": "string", "minLength": 1, "maxLength": _MAX_NAME},
    # OpenAI's range; 0 and 1 mean what they mean there.
    "top_p": _number(0, 1),
    "seed": _integer(-(2**63), 2**63 - 1),
    "n": _ONE,
    "stream_options": _STREAM_OPTIONS,
    "logit_bias": {"type": ["object", "null"], "maxProperties": 0, "description": "Not supported"},
}


class Inputs:
    """The bodies that one bridge takes: `prompt` and `messages` of /ai/run (`run`: either), `generic`, `chat`, `completion`."""

    def __init__(self, *, max_messages: int, max_schema_depth: int) -> None:
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
            "name": {"type": "string", "minLength": 1, "maxLength": _MAX_NAME},
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
        "model": {"type": "string", "minLength": 1, "maxLength": _MAX_NAME},
        "input": {"type": "object"},
        "options": {"type": ["object", "null"]},
    },
    "required": ["model", "input"],
}
