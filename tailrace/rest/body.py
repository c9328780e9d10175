"""Writes a request as a body of the bridge's OpenAI routes, which report log probabilities, thoughts and usage."""

from typing import Any

from tailrace.endpoint import Endpoint
from tailrace.request import RunInput
from tailrace.types import Message, Tool, ToolCall

# The bearer token if the caller has none. A bridge without configured tokens accepts any token.
_ANY_TOKEN = "any-token"  # noqa: S105 - not a secret


def headers(endpoint: Endpoint) -> dict[str, str]:
    """Return the headers of every request."""
    return {"authorization": f"Bearer {endpoint.token or _ANY_TOKEN}", "user-agent": "tailrace-python"}


def base_url(endpoint: Endpoint) -> str:
    """Return the base URL of OpenAI's routes: those of the endpoint's account, if it has one."""
    path = f"/client/v4/accounts/{endpoint.account}/ai/v1" if endpoint.account else "/v1"
    return endpoint.url + path


def route(run: RunInput) -> str:
    """Return the route of the request: /completions for raw text, /chat/completions for a conversation."""
    return "/chat/completions" if run.text is None else "/completions"


def body(run: RunInput) -> dict[str, Any]:
    """Return the body of a request for a stream."""
    fields: dict[str, Any] = {
        "model": run.model,
        "stream": True,
        "stream_options": {"include_usage": True},
        **run.sampling,
        "stop": list(run.stop),
        "logit_bias": {str(token): bias for token, bias in run.logit_bias.items()},
        "lora": run.adapter,
        "options": {"rejectIfBusy": True} if run.reject_if_busy else None,
        **({"prompt": run.text} if run.text is not None else _conversation(run)),
    }
    if run.json_schema is not None:
        schema = {"type": "json_schema", "json_schema": {"name": "reply", "schema": run.json_schema}}
        fields["response_format"] = schema if run.json_schema else {"type": "json_object"}
    if run.logprobs is not None:
        is_raw = run.text is not None
        fields |= {"logprobs": run.logprobs} if is_raw else {"logprobs": True, "top_logprobs": run.logprobs}
    # Empty values are left out. 0 and False are not empty.
    return {name: value for name, value in fields.items() if value not in (None, "", [], {})}


def _conversation(run: RunInput) -> dict[str, Any]:
    choice: Any = run.tool_choice
    if run.tool_name:
        choice = {"type": "function", "function": {"name": run.tool_name}}
    return {
        "messages": list(map(_message, run.messages)),
        "tools": list(map(_tool, run.tools)),
        "tool_choice": choice if run.tools or run.tool_choice != "auto" else None,
        "parallel_tool_calls": run.parallel_tool_calls,
        "reasoning_effort": run.reasoning_effort,
        "chat_template_kwargs": dict(run.template_arguments),
        "continue_final_message": run.continue_final_message or None,
    }


def _message(message: Message) -> dict[str, Any]:
    fields = {
        "tool_calls": list(map(_call, message.tool_calls)),
        "tool_call_id": message.tool_call_id,
        "name": message.name,
        "reasoning_content": message.reasoning,
    }
    return {"role": message.role, "content": message.content} | {name: value for name, value in fields.items() if value}


def _call(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"type": "function", "function": function} | ({"id": call.id} if call.id else {})


def _tool(tool: Tool) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.name, "description": tool.description}
    return {
        "type": "function",
        "function": function | ({"parameters": dict(tool.parameters)} if tool.parameters else {}),
    }
