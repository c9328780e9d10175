"""Replies as OpenAI writes them: chat completions and completions, whole and in chunks, and errors in both worlds' shapes."""

import json
import time
from abc import abstractmethod
from typing import Literal

from http_bridge.api.reply_writer import ErrorForm, JsonObject, ReplyForm, Whole, error_message, usage_payload
from http_bridge.api.workers_ai.replies import json_bytes
from http_bridge.errors import ApiError
from http_bridge.protocol import sse
from tailrace.v1 import inference_pb2 as pb
from tailrace.v1.inference_pb2 import Completed, Delta, Started, TokenLogprob, ToolCall

_FINISH_REASONS: dict[int, str] = {
    pb.FINISH_REASON_STOP: "stop",
    pb.FINISH_REASON_LENGTH: "length",
    pb.FINISH_REASON_TIME_LIMIT: "length",
    pb.FINISH_REASON_TOOL_CALLS: "tool_calls",
}
# Where a stream tells its usage: in a chunk of its own without choices, as asked for; in the one with the finish reason,
# where clients of Cloudflare's own address expect it unasked; nowhere.
UsagePlace = Literal["own_chunk", "last_choice", "nowhere"]
_ERROR_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class OpenAiErrors(ErrorForm):
    """OpenAI's `error` object beside Cloudflare's envelope, so that clients of either find what they look for."""

    def payload(self, error: ApiError, request_id: str) -> JsonObject:
        entry = {"message": error_message(error, request_id), "code": error.code}
        return {"error": _error(error), "errors": [entry], "success": False, "result": {}, "messages": []}


def _error(error: ApiError) -> JsonObject:
    kind = _ERROR_TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "server_error")
    return {"message": error.description, "type": kind, "param": None, "code": str(error.code)}


class _OpenAiForm(ReplyForm):
    """What chat completions and completions share: the head of every object, and its usage."""

    whole_object: str
    chunk_object: str

    def __init__(self, *, request_id: str, model: str, usage: UsagePlace) -> None:
        self._id = f"{self.id_prefix}{request_id.replace('-', '')}"
        self._created = int(time.time())
        self._model = model
        self._usage = usage

    @property
    @abstractmethod
    def id_prefix(self) -> str: ...

    @abstractmethod
    def _chunk(
        self, delta: JsonObject, finish_reason: str | None = None, logprobs: object = None, **rest: object
    ) -> bytes: ...

    def _head(self, kind: str) -> JsonObject:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._model}

    def _event(self, choices: list[JsonObject], **rest: object) -> bytes:
        payload = {**self._head(self.chunk_object), "choices": choices, **rest}
        if self._usage == "own_chunk" and "usage" not in rest:
            payload["usage"] = None
        return sse.event(payload)

    def _answer(self, choice: JsonObject, completed: Completed) -> bytes:
        usage = usage_payload(completed, counts_cached=True)
        return json_bytes({**self._head(self.whole_object), "choices": [choice], "usage": usage})

    def _end(self, completed: Completed) -> bytes:
        if self._usage != "own_chunk":
            return sse.DONE
        return self._event([], usage=usage_payload(completed, counts_cached=True)) + sse.DONE

    def _last_usage(self, completed: Completed) -> JsonObject:
        told = self._usage == "last_choice"
        return {"usage": usage_payload(completed, counts_cached=True)} if told else {}

    def failure(self, error: ApiError, request_id: str) -> bytes:
        return sse.event({"error": _error(error)})


class ChatForm(_OpenAiForm):
    """`chat.completion` and its chunks."""

    id_prefix = "chatcmpl-"
    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def __init__(self, *, request_id: str, model: str, usage: UsagePlace) -> None:
        super().__init__(request_id=request_id, model=model, usage=usage)
        self._num_calls = 0
        head = json.dumps(self._head(self.chunk_object), separators=(",", ":"), ensure_ascii=False)
        self._before = f'data: {head[:-1]},"choices":[{{"index":0,"delta":{{"content":'
        no_usage = ',"usage":null' if usage == "own_chunk" else ""
        self._after = f'}},"logprobs":null,"finish_reason":null}}]{no_usage}}}\n\n'

    def whole(self, reply: Whole) -> bytes:
        message: JsonObject = {"role": "assistant", "content": reply.text, "refusal": None}
        if reply.tool_calls:
            message["content"] = reply.text or None
            message["tool_calls"] = [_call(call) for call in reply.tool_calls]
        choice = {
            "index": 0,
            "message": message,
            "logprobs": {"content": [_logprob(item) for item in reply.logprobs]} if reply.logprobs else None,
            "finish_reason": _FINISH_REASONS[reply.completed.finish_reason],
        }
        return self._answer(choice, reply.completed)

    def opening(self, started: Started) -> bytes:
        return self._chunk({"role": "assistant", "content": ""})

    def text(self, text: str) -> bytes:
        # Only the text differs from chunk to chunk: the rest was made once.
        return f"{self._before}{sse.literal(text)}{self._after}".encode()

    def delta(self, delta: Delta) -> bytes:
        content: JsonObject = {"content": delta.text} if delta.text or delta.logprobs else {}
        if delta.tool_calls:
            content["tool_calls"] = [
                {"index": self._num_calls + offset, **_call(call)} for offset, call in enumerate(delta.tool_calls)
            ]
            self._num_calls += len(delta.tool_calls)
        if not content:
            return b""
        logprobs = {"content": [_logprob(item) for item in delta.logprobs]} if delta.logprobs else None
        return self._chunk(content, logprobs=logprobs)

    def end(self, completed: Completed) -> bytes:
        reason = _FINISH_REASONS[completed.finish_reason]
        return self._chunk({}, reason, **self._last_usage(completed)) + self._end(completed)

    def _chunk(
        self, delta: JsonObject, finish_reason: str | None = None, logprobs: object = None, **rest: object
    ) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        return self._event([choice], **rest)


class CompletionForm(_OpenAiForm):
    """`text_completion`, whole and in chunks, which have the same shape."""

    id_prefix = "cmpl-"
    whole_object = chunk_object = "text_completion"

    def __init__(self, *, request_id: str, model: str, usage: UsagePlace, echo: str) -> None:
        """`echo`: the prompt, if it is to precede the reply."""
        super().__init__(request_id=request_id, model=model, usage=usage)
        self._echo = echo
        self._offset = len(echo)

    def whole(self, reply: Whole) -> bytes:
        choice: JsonObject = {
            "index": 0,
            "text": self._echo + reply.text,
            "logprobs": self._logprobs(reply.logprobs) if reply.logprobs else None,
            "finish_reason": _FINISH_REASONS[reply.completed.finish_reason],
        }
        return self._answer(choice, reply.completed)

    def opening(self, started: Started) -> bytes:
        return self.text(self._echo) if self._echo else b""

    def text(self, text: str) -> bytes:
        return self._chunk({"text": text})

    def delta(self, delta: Delta) -> bytes:
        if not delta.text and not delta.logprobs:
            return b""
        return self._chunk({"text": delta.text}, logprobs=self._logprobs(list(delta.logprobs)))

    def end(self, completed: Completed) -> bytes:
        reason = _FINISH_REASONS[completed.finish_reason]
        return self._chunk({"text": ""}, reason, **self._last_usage(completed)) + self._end(completed)

    def _chunk(
        self, delta: JsonObject, finish_reason: str | None = None, logprobs: object = None, **rest: object
    ) -> bytes:
        return self._event([{"index": 0, **delta, "logprobs": logprobs, "finish_reason": finish_reason}], **rest)

    def _logprobs(self, items: list[TokenLogprob]) -> JsonObject:
        texts = [_text(item.token.text) for item in items]
        offsets = []
        for text in texts:
            offsets.append(self._offset)
            self._offset += len(text)
        return {
            "tokens": texts,
            "token_logprobs": [item.token.logprob for item in items],
            "top_logprobs": [{_text(top.text): top.logprob for top in item.top} for item in items],
            "text_offset": offsets,
        }


def _call(call: ToolCall) -> JsonObject:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _logprob(item: TokenLogprob) -> JsonObject:
    return {**_candidate(item.token), "top_logprobs": [_candidate(top) for top in item.top]}


def _candidate(candidate: pb.Candidate) -> JsonObject:
    return {"token": _text(candidate.text), "logprob": candidate.logprob, "bytes": list(candidate.text)}


def _text(token: bytes) -> str:
    """A token may hold a part of a character; then a replacement character stands for it."""
    return token.decode(errors="replace")
