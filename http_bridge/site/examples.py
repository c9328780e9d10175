"""Examples of bodies, replies and streams for the OpenAPI description, by the end of a route's path."""

import json
from dataclasses import dataclass
from typing import Any

# Two models of the default catalog, so that the examples can be sent unchanged.
MODEL = "@cf/meta/llama-2-7b-chat-int8"
EMBEDDER = "@cf/baai/bge-small-en-v1.5"
_QUESTION = "Where is New York?"
_MESSAGES = [{"role": "user", "content": _QUESTION}]
_USAGE = {"prompt_tokens": 35, "completion_tokens": 2, "total_tokens": 37}
_CHAT_ID = {"id": "chatcmpl-5a23bc53", "object": "chat.completion.chunk", "created": 1796063662, "model": MODEL}
_TEXT_ID = {"id": "cmpl-acf5eabc", "object": "text_completion", "created": 1796063662, "model": MODEL}


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """An example of a route.

    Attributes:
        body: The request's body.
        reply: The JSON reply to the body without `stream`.
        stream: The events of the reply to the body with `stream`; empty: the route has no streams.
    """

    body: Any
    reply: Any
    stream: str = ""


def _events(*events: object) -> str:
    return "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"


def _envelope(result: object) -> dict[str, object]:
    return {"result": result, "success": True, "errors": [], "messages": []}


def _chunk(**choice: object) -> dict[str, object]:
    return {**_CHAT_ID, "choices": [{"index": 0, **choice}]}


_RUN_STREAM = _events({"response": "New"}, {"response": " York"}, {"response": "", "usage": _USAGE})
_RESULT = {"response": "New York", "usage": _USAGE}
_RESPONSE = {"id": "resp_f2aafe6d", "object": "response", "model": MODEL}
_OUTPUT = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "New York"}]}
_TEXT_DELTA = {"type": "response.output_text.delta", "output_index": 0, "content_index": 0}
_RESPONSES_USAGE = {"input_tokens": 35, "output_tokens": 2, "total_tokens": 37}
_RESPONSES_EVENTS = (
    {"type": "response.created", "response": {**_RESPONSE, "status": "in_progress"}},
    {**_TEXT_DELTA, "delta": "New"},
    {**_TEXT_DELTA, "delta": " York"},
    {"type": "response.completed", "response": {**_RESPONSE, "status": "completed", "usage": _RESPONSES_USAGE}},
)
_VECTOR = [0.0863630325, -0.0198833123, 0.0714936778]
_STEP = {"provider": "workers-ai", "endpoint": MODEL, "headers": {}, "query": {"prompt": _QUESTION}}

_EXAMPLES = {
    "/ai/run/{model}": Example(
        body={"messages": _MESSAGES, "max_tokens": 256}, reply=_envelope(_RESULT), stream=_RUN_STREAM
    ),
    "/ai/run": Example(
        body={"model": MODEL, "input": {"messages": _MESSAGES, "max_tokens": 256}},
        reply=_envelope(_RESULT),
        stream=_RUN_STREAM,
    ),
    "/run": Example(
        body={"inputs": {"messages": _MESSAGES, "max_tokens": 256}, "options": {}}, reply=_RESULT, stream=_RUN_STREAM
    ),
    "/ai-gateway/universal/run/{gateway}": Example(body=[_STEP], reply=_envelope(_RESULT), stream=_RUN_STREAM),
    "/ai-gateway/v1/{account}/{gateway}": Example(body=[_STEP], reply=_envelope(_RESULT), stream=_RUN_STREAM),
    "/v1/chat/completions": Example(
        body={"model": MODEL, "messages": _MESSAGES, "max_tokens": 256},
        reply={
            **_CHAT_ID,
            "object": "chat.completion",
            "choices": [{"index": 0, "message": {"role": "assistant", "content": "New York"}, "finish_reason": "stop"}],
            "usage": _USAGE,
        },
        stream=_events(
            _chunk(delta={"role": "assistant", "content": ""}, finish_reason=None),
            _chunk(delta={"content": "New"}, finish_reason=None),
            _chunk(delta={"content": " York"}, finish_reason=None),
            _chunk(delta={}, finish_reason="stop"),
        ),
    ),
    "/v1/completions": Example(
        body={"model": MODEL, "prompt": "New York is", "max_tokens": 16},
        reply={**_TEXT_ID, "choices": [{"index": 0, "text": " a city", "finish_reason": "stop"}], "usage": _USAGE},
        stream=_events(
            {**_TEXT_ID, "choices": [{"index": 0, "text": " a", "finish_reason": None}]},
            {**_TEXT_ID, "choices": [{"index": 0, "text": " city", "finish_reason": None}]},
            {**_TEXT_ID, "choices": [{"index": 0, "text": "", "finish_reason": "stop"}]},
        ),
    ),
    "/v1/responses": Example(
        body={"model": MODEL, "input": _QUESTION, "max_output_tokens": 256},
        reply={**_RESPONSE, "status": "completed", "output": [_OUTPUT], "usage": _RESPONSES_USAGE},
        stream="".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in _RESPONSES_EVENTS),
    ),
    "/v1/embeddings": Example(
        body={"model": EMBEDDER, "input": ["New York"]},
        reply={
            "object": "list",
            "data": [{"object": "embedding", "index": 0, "embedding": _VECTOR}],
            "model": EMBEDDER,
            "usage": {"prompt_tokens": 4, "total_tokens": 4},
        },
    ),
}


def example_of(path: str) -> Example | None:
    """Return the example for a route's path: the one with the longest matching end; None if there is none."""
    return next((_EXAMPLES[end] for end in sorted(_EXAMPLES, key=len, reverse=True) if path.endswith(end)), None)
