"""JSON Schemas of request bodies: bodies are validated against them, and /ai/models/schema and /openapi.json publish them.

Draft 2020-12 without $ref, plus one keyword of Tailrace: `maxDepth`, the deepest nesting of arrays and objects. A field that
is null counts as absent, and unknown keys are accepted. Sources: Workers AI's published schema of llama-2-7b-chat-int8 for
names, types and ranges; OpenAI's API reference for the fields that its routes add.
"""

from typing import Any

from http_bridge.protocol.responses_schema import responses_schema
from tailrace_shared.request_fields import (
    MAX_CHOICES,
    MAX_LOGIT_BIAS,
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

ANY_OBJECT: Schema = {"type": "object"}
# Types of content parts that are text.
TEXT_PARTS = ("text", "input_text", "output_text")


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


# The parts of other types are not in the schema: bodies/messages.py refuses them with the model's name.
_PART: Schema = {
    "type": "object",
    "properties": {"type": _optional("string"), "thinking": {"type": ["string", "array", "null"], "items": ANY_OBJECT}},
    "if": {"properties": {"type": {"enum": list(TEXT_PARTS)}}, "required": ["type"]},
    "then": {"required": ["type", "text"], "properties": {"text": {"type": "string"}}},
    "else": {
        "if": {"properties": {"type": {"const": "refusal"}}, "required": ["type"]},
        "then": {"required": ["refusal"], "properties": {"refusal": {"type": "string"}}},
    },
}
_CONTENT: Schema = {"type": ["string", "array"], "items": _PART}
_CALLED_FUNCTION: Schema = {
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": MAX_NAME_LENGTH},
        "arguments": {"type": ["string", "object", "null"]},
    },
    "required": ["name"],
}
_TOOL_CALL: Schema = {
    "type": "object",
    "description": "A call as OpenAI writes it (function) or as Workers AI does (name, arguments)",
    "properties": {
        "id": _optional("string", maxLength=MAX_NAME_LENGTH),
        "type": {"enum": ["function", None]},
        "function": _optional("object", **_CALLED_FUNCTION),
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
        "function_call": _optional("object", **_CALLED_FUNCTION),
        "reasoning_content": _optional("string", description="An assistant's thoughts before its text"),
        "reasoning": _optional("string", description="The same as reasoning_content"),
        "refusal": _optional("string"),
        "prefix": _optional("boolean", description="In the last message: the reply continues it"),
    },
    # A message that only calls a tool, and the message of a tool without output, may have no content.
    "if": {"properties": {"role": {"enum": ["assistant", "tool"]}}, "required": ["role"]},
    "else": {"required": ["role", "content"], "properties": {"content": {"type": ["string", "array"]}}},
}
# The forms of other APIs are not in the schema: bodies/tools.py reads them.
_TOOL_CHOICE: Schema = {
    "type": ["string", "object", "null"],
    "description": "none, auto, required, any, {type: function, function: {name}}, or {type: allowed_tools, …}",
}
_THINKING: Schema = {
    "reasoning_effort": _optional("string", description="none, minimal, low, medium, high or xhigh"),
    "reasoning": {
        "type": ["object", "string", "boolean", "null"],
        "properties": {
            "effort": _optional("string"),
            "enabled": _optional("boolean"),
            "exclude": _optional("boolean", description="Leaves the thoughts out of the reply"),
        },
    },
    "enable_thinking": _optional("boolean"),
    "thinking": {"type": ["object", "boolean", "null"], "properties": {"type": _optional("string")}},
    "include_reasoning": _optional("boolean"),
    "reasoning_format": _optional("string"),
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
_LOGIT_BIAS: Schema = {
    "type": ["object", "null"],
    "description": "Added to the logits of tokens, by the token's id in the model's own vocabulary",
    "maxProperties": MAX_LOGIT_BIAS,
    "propertyNames": {"pattern": r"^\d{1,9}$"},
    "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
}
_SAMPLING: Schema = {
    "stream": _optional("boolean", default=False),
    **{field.name: _sampling(field, field.rest) for field in SAMPLING_FIELDS},
    "stop": _STOP,
    "logit_bias": _LOGIT_BIAS,
    "options": _OPTIONS,
}
_NEVER_LORA: Schema = _optional("string", description="Accepted by no model here: 405 with code 5005")

_STREAM_OPTIONS: Schema = {
    "type": ["object", "null"],
    "properties": {"include_usage": _optional("boolean"), "include_obfuscation": _optional("boolean")},
}
_OPENAI: Schema = {
    "model": {"type": "string", "minLength": 1, "maxLength": MAX_NAME_LENGTH},
    **{field.name: _sampling(field, field.openai) for field in SAMPLING_FIELDS if field.openai is not None},
    "n": _integer(1, MAX_CHOICES, description="Number of replies"),
    "stream_options": _STREAM_OPTIONS,
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
        templated: Schema = {
            "tools": _optional("array", items=_tool(max_schema_depth), maxItems=MAX_TOOLS),
            "tool_choice": _TOOL_CHOICE,
            "parallel_tool_calls": _optional("boolean", description="Several calls in one reply; true by default"),
            "chat_template_kwargs": _optional(
                "object", maxDepth=max_schema_depth, description="Variables for the chat template"
            ),
            **_THINKING,
        }
        conversation: Schema = {
            "messages": {"type": "array", "minItems": 1, "maxItems": max_messages, "items": _MESSAGE},
            "continue_final_message": _optional("boolean", description="The reply continues the last message"),
            "add_generation_prompt": _optional("boolean", description="Begin an assistant's message; true by default"),
            **templated,
        }
        self.prompt = _prompt({**templated, **sampling})
        self.messages = _messages(conversation, sampling)
        self.run: Schema = {"type": "object", "anyOf": [self.prompt, self.messages]}
        self.generic = _GENERIC
        self.chat = _chat(conversation, openai)
        self.completion = _completion(openai)
        self.responses = responses_schema(openai, max_messages=max_messages, max_schema_depth=max_schema_depth)


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
            "input_schema": _optional("object", maxDepth=max_schema_depth, description="The same as parameters"),
        },
        "required": ["name"],
    }
    return {
        "type": "object",
        "description": "A function, as such or in OpenAI's form. Tools of other types are left out",
        "if": {"properties": {"function": {"type": "object"}}, "required": ["function"]},
        "then": {"properties": {"function": function}},
        "else": {
            "if": {"properties": {"type": {"enum": ["function", None]}}},
            "then": function,
            "else": {"properties": {"type": {"type": "string", "minLength": 1}}},
        },
    }


def _prompt(rest: Schema) -> Schema:
    raw = "The prompt as it is, without the model's chat template"
    return {
        "title": "Prompt",
        "type": "object",
        "properties": {
            "prompt": {"type": "string", "minLength": 1},
            "raw": _optional("boolean", default=False, description=raw),
            "lora": _NEVER_LORA,
            **rest,
        },
        "required": ["prompt"],
    }


def _messages(conversation: Schema, sampling: Schema) -> Schema:
    return {
        "title": "Messages",
        "type": "object",
        "properties": {
            **conversation,
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
            "best_of": _integer(1, description="Not above n"),
            "suffix": _optional("string", description="Not supported, unless it is empty"),
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
