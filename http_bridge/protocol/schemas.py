"""JSON Schemas of request bodies: bodies are validated against them, and /ai/models/schema and /openapi.json publish them.

Draft 2020-12 without $ref, plus one keyword of Tailrace: `maxDepth`, the deepest nesting of arrays and objects. A field that
is null counts as absent, and unknown keys are accepted. Sources: Workers AI's published schema of llama-2-7b-chat-int8 for
names, types and ranges; OpenAI's API reference for the fields that its routes add.
"""

from typing import Any

from http_bridge.protocol.conversation_schemas import MESSAGE, THINKING, TOOL_CHOICE, optional, tool
from http_bridge.protocol.responses_schema import responses_schema
from tailrace_shared.request_fields import (
    MAX_BIAS,
    MAX_BIASED_TOKENS,
    MAX_CHOICES,
    MAX_NAME_LENGTH,
    MAX_STOP_LENGTH,
    MAX_STOP_STRINGS,
    MAX_TOOLS,
    MAX_TOP_LOGPROBS,
    SAMPLING_FIELDS,
    Range,
    SamplingField,
)

Schema = dict[str, Any]


def _integer(minimum: int, maximum: int | None = None, **rest: Any) -> Schema:
    return optional("integer", minimum=minimum, **({} if maximum is None else {"maximum": maximum}), **rest)


def _sampling(field: SamplingField, accepted: Range) -> Schema:
    """Return the schema of one sampling parameter with the range `accepted`."""
    schema = optional(field.kind)
    if accepted.minimum is not None:
        schema["exclusiveMinimum" if accepted.is_above else "minimum"] = accepted.minimum
    if accepted.maximum is not None:
        schema["maximum"] = accepted.maximum
    if field.shown_default is not None:
        schema["default"] = field.shown_default
    if field.description:
        schema["description"] = field.description
    return schema


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
    "properties": {"rejectIfBusy": optional("boolean", description="429 rather than wait for a slot")},
}
_LOGIT_BIAS: Schema = {
    "type": ["object", "null"],
    "description": "Added to the logits of tokens, by the token's id in the model's own vocabulary",
    "maxProperties": MAX_BIASED_TOKENS,
    # Not propertyNames: each of its errors has a copy of the whole object.
    "patternProperties": {r"^[0-9]{1,9}$": {"type": "number", "minimum": -MAX_BIAS, "maximum": MAX_BIAS}},
    "additionalProperties": False,
}
_SAMPLING: Schema = {
    "stream": optional("boolean", default=False),
    **{field.name: _sampling(field, field.rest) for field in SAMPLING_FIELDS},
    "stop": _STOP,
    "logit_bias": _LOGIT_BIAS,
    "options": _OPTIONS,
    "lora": optional("string", maxLength=MAX_NAME_LENGTH, description="Name of a LoRA adapter of the model"),
}
_STREAM_OPTIONS: Schema = {
    "type": ["object", "null"],
    "properties": {"include_usage": optional("boolean"), "include_obfuscation": optional("boolean")},
}
# Additions to the schemas of OpenAI's fields. bodies/openai_values.py removes the values that mean unset.
_UNSET: Schema = {
    "max_tokens": {"description": "The model's sequence length by default; -1, 0 and null mean unset"},
    "top_k": {"description": "-1, 0 and null mean unset"},
    "seed": {"description": "-1 and null mean unset"},
}
_OPENAI: Schema = {
    "model": {"type": "string", "minLength": 1, "maxLength": MAX_NAME_LENGTH},
    **{
        field.name: _sampling(field, field.openai or field.rest) | _UNSET.get(field.name, {})
        for field in SAMPLING_FIELDS
    },
    "n": _integer(1, MAX_CHOICES, description="Number of replies"),
    "stream_options": _STREAM_OPTIONS,
}


class Inputs:
    """The schemas of one bridge's request bodies.

    Attributes:
        prompt: Body of /ai/run with `prompt`.
        messages: Body of /ai/run with `messages`.
        run: Body of /ai/run: `prompt`, `messages`, or `input` as in OpenAI's Responses API.
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
            "tools": optional("array", items=tool(max_schema_depth), maxItems=MAX_TOOLS),
            "tool_choice": TOOL_CHOICE,
            "parallel_tool_calls": optional(
                "boolean", description="Several calls in one reply; by default true, and false if a call is required"
            ),
            "chat_template_kwargs": optional(
                "object", maxDepth=max_schema_depth, description="Variables for the chat template"
            ),
            **THINKING,
        }
        conversation: Schema = {
            "messages": {"type": "array", "minItems": 1, "maxItems": max_messages, "items": MESSAGE},
            "continue_final_message": optional("boolean", description="The reply continues the last message"),
            "add_generation_prompt": optional("boolean", description="Begin an assistant's message; true by default"),
            **templated,
        }
        self.prompt = _prompt({**templated, **sampling})
        self.messages = _messages(conversation, sampling)
        self.generic = _GENERIC
        self.chat = _chat(conversation, openai)
        self.completion = _completion(openai)
        self.responses = responses_schema(openai, max_messages=max_messages, max_schema_depth=max_schema_depth)
        responses_input = {**self.responses, "required": ["input"]}
        self.run: Schema = {"type": "object", "anyOf": [self.prompt, self.messages, responses_input]}


def _response_format(max_schema_depth: int) -> Schema:
    schema = {"type": ["object", "boolean"], "maxDepth": max_schema_depth}
    return {
        "type": ["object", "null"],
        "properties": {"type": {"enum": ["text", "json_object", "json_schema"]}, "json_schema": {}},
        "required": ["type"],
        "if": {"properties": {"type": {"const": "json_schema"}}, "required": ["type"]},
        "then": {"required": ["type", "json_schema"], "properties": {"json_schema": schema}},
    }


def _prompt(rest: Schema) -> Schema:
    raw = "The prompt as it is, without the model's chat template"
    return {
        "title": "Prompt",
        "type": "object",
        "properties": {
            "prompt": {"type": "string", "minLength": 1},
            "raw": optional("boolean", default=False, description=raw),
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
            "logprobs": optional("boolean"),
            "top_logprobs": _integer(0, MAX_TOP_LOGPROBS),
        },
        "required": ["model", "messages"],
    }


def _completion(openai: Schema) -> Schema:
    prompt = {"minLength": 1, "minItems": 1, "maxItems": MAX_CHOICES, "items": {"type": "string", "minLength": 1}}
    return {
        "title": "Completion",
        "type": "object",
        "properties": {
            **openai,
            "prompt": {"type": ["string", "array"], **prompt},
            "logprobs": _integer(0, MAX_TOP_LOGPROBS),
            "echo": optional("boolean"),
            "best_of": _integer(1, description="Not above n"),
            "suffix": optional("string", description="Not supported, unless it is empty"),
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
