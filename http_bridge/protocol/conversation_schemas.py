"""JSON Schemas of the parts of a conversation: messages, tools, the choice among tools, and reasoning options."""

from typing import Any

from tailrace_shared.request_fields import MAX_NAME_LENGTH, MAX_ROLE_LENGTH, MAX_TOOLS

Schema = dict[str, Any]

# Types of content parts that are text.
TEXT_PARTS = ("text", "input_text", "output_text")


def optional(kind: str, **rest: Any) -> Schema:
    """Return the schema of a value that may be null."""
    return {"type": [kind, "null"], **rest}


# Parts of other types are not in the schema: bodies/messages.py refuses them, with an error that names the model.
_PART: Schema = {
    "type": "object",
    "properties": {
        "type": optional("string"),
        "thinking": {"type": ["string", "array", "null"], "items": {"type": "object"}},
    },
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
        "id": optional("string", maxLength=MAX_NAME_LENGTH),
        "type": {"enum": ["function", "custom", None]},
        "function": optional("object", **_CALLED_FUNCTION),
        "custom": optional(
            "object",
            properties={
                "name": {"type": "string", "minLength": 1, "maxLength": MAX_NAME_LENGTH},
                "input": optional("string"),
            },
            required=["name"],
        ),
        "name": optional("string", minLength=1, maxLength=MAX_NAME_LENGTH),
        "arguments": {"type": ["string", "object", "null"]},
    },
}
MESSAGE: Schema = {
    "type": "object",
    "properties": {
        "role": {"type": "string", "minLength": 1, "maxLength": MAX_ROLE_LENGTH},
        "content": {**_CONTENT, "type": ["string", "array", "null"]},
        "name": optional("string", maxLength=MAX_NAME_LENGTH),
        "tool_call_id": optional("string", maxLength=MAX_NAME_LENGTH),
        "tool_calls": optional("array", items=_TOOL_CALL, maxItems=MAX_TOOLS),
        "function_call": optional("object", **_CALLED_FUNCTION),
        "reasoning_content": optional("string", description="An assistant's thoughts before its text"),
        "reasoning": optional("string", description="The same as reasoning_content"),
        "thinking": optional("string", description="The same as reasoning_content"),
        "reasoning_details": optional("array", items={"type": "object"}),
        "refusal": optional("string"),
        "prefix": optional("boolean", description="In the last message: the reply continues it"),
    },
    # A message that only calls a tool, and the message of a tool without output, may have no content.
    "if": {"properties": {"role": {"enum": ["assistant", "tool"]}}, "required": ["role"]},
    "else": {"required": ["role", "content"], "properties": {"content": {"type": ["string", "array"]}}},
}
# The formats of other APIs are not in the schema: bodies/tools.py reads them.
TOOL_CHOICE: Schema = {
    "type": ["string", "object", "null"],
    "description": "none, auto, required, any, {type: function, function: {name}}, or {type: allowed_tools, …}",
}
THINKING: Schema = {
    "reasoning_effort": optional("string", description="none, minimal, low, medium, high or xhigh"),
    "reasoning": {
        "type": ["object", "string", "boolean", "null"],
        "properties": {
            "effort": optional("string"),
            "enabled": optional("boolean"),
            "exclude": optional("boolean", description="Leaves the thoughts out of the reply"),
        },
    },
    "enable_thinking": optional("boolean"),
    "thinking": {"type": ["object", "boolean", "null"], "properties": {"type": optional("string")}},
    "include_reasoning": optional("boolean"),
    "reasoning_format": optional("string"),
}


def tool(max_schema_depth: int) -> Schema:
    """Return the schema of a tool. `max_schema_depth`: deepest nesting of its parameters."""
    function: Schema = {
        "type": "object",
        "properties": {
            "name": {"type": "string", "minLength": 1, "maxLength": MAX_NAME_LENGTH},
            "description": optional("string"),
            "parameters": optional("object", maxDepth=max_schema_depth),
            "input_schema": optional("object", maxDepth=max_schema_depth, description="The same as parameters"),
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
