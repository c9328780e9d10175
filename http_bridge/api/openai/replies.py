"""Replies as OpenAI writes them: chat completions and completions, complete or in chunks."""

import json
import time
from abc import abstractmethod
from typing import Literal

from http_bridge.api.openai.errors import openai_error
from http_bridge.api.reply_writer import CompleteReply, JsonObject, ReplyWriter, json_bytes, usage_payload
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
# Where a stream reports the usage. own_chunk: a chunk without choices, if the client set include_usage. last_choice:
# the chunk with the finish reason, where clients of an account's routes expect it even without include_usage. nowhere:
# not in the stream.
UsagePlace = Literal["own_chunk", "last_choice", "nowhere"]


class OpenAiWriter(ReplyWriter):
    """The common part of chat completions and completions: the head of every object, and the usage."""

    complete_object: str
    chunk_object: str

    def __init__(self, *, request_id: str, model: str, usage: UsagePlace, index: int) -> None:
        self._id = f"{self.id_prefix}{request_id.replace('-', '')}"
        self._created = int(time.time())
        self._model = model
        self._usage = usage
        self._index = index

    @property
    @abstractmethod
    def id_prefix(self) -> str:
        """Prefix of the reply's id."""

    @abstractmethod
    def _chunk(
        self, delta: JsonObject, finish_reason: str | None = None, logprobs: object = None, **rest: object
    ) -> bytes: ...

    @abstractmethod
    def choice(self, reply: CompleteReply) -> JsonObject:
        """Return the reply as one of the choices of a complete reply."""

    @abstractmethod
    def end_choice(self, completed: Completed, *, has_usage: bool) -> bytes:
        """Return the chunk with the finish reason. `has_usage`: whether it may contain the usage."""

    def complete(self, reply: CompleteReply) -> bytes:
        """Return the reply as an object with one choice."""
        return self.answer([self.choice(reply)], reply.completed)

    def finish(self, completed: Completed) -> bytes:
        """Return the chunk with the finish reason, the usage if the stream reports it, and the end of the stream."""
        return self.end_choice(completed, has_usage=True) + self.end(completed)

    def answer(self, choices: list[JsonObject], completed: Completed) -> bytes:
        """Return the complete reply with these choices. `completed` has the usage of all choices."""
        return json_bytes({**self._head(self.complete_object), "choices": choices, "usage": _usage(completed)})

    def end(self, completed: Completed) -> bytes:
        """Return the end of the stream, after the usage if it has its own chunk."""
        if self._usage != "own_chunk":
            return sse.DONE
        return self._event([], usage=_usage(completed)) + sse.DONE

    def end_choices(self, completed: Completed) -> bytes:
        """Return the end of a stream whose choices have all ended, after their usage if the stream reports it."""
        usage = self._last_usage(completed, has_usage=True)
        return (self._event([], **usage) if usage else b"") + self.end(completed)

    def _head(self, kind: str) -> JsonObject:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._model}

    def _event(self, choices: list[JsonObject], **rest: object) -> bytes:
        payload = {**self._head(self.chunk_object), "choices": choices, **rest}
        if self._usage == "own_chunk" and "usage" not in rest:
            payload["usage"] = None
        return sse.event(payload)

    def _last_usage(self, completed: Completed, has_usage: bool) -> JsonObject:
        return {"usage": _usage(completed)} if has_usage and self._usage == "last_choice" else {}

    def error(self, error: ApiError, request_id: str) -> bytes:
        """Return an event with OpenAI's error object."""
        return sse.event({"error": openai_error(error)})


class ChatWriter(OpenAiWriter):
    """Writes `chat.completion` and its chunks."""

    id_prefix = "chatcmpl-"
    complete_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def __init__(
        self, *, request_id: str, model: str, usage: UsagePlace, index: int = 0, hides_reasoning: bool = False
    ) -> None:
        """Prepare the constant parts of the chunks.

        Args:
            request_id: Used as the reply's id, after a prefix.
            model: Name of the model as the client wrote it.
            usage: Where a stream reports the usage.
            index: Place of this choice among the choices of the reply.
            hides_reasoning: Whether the model's thoughts are left out.
        """
        super().__init__(request_id=request_id, model=model, usage=usage, index=index)
        self._num_calls = 0
        self._hides_reasoning = hides_reasoning
        head = json.dumps(self._head(self.chunk_object), separators=(",", ":"), ensure_ascii=False)
        self._before = f'data: {head[:-1]},"choices":[{{"index":{index},"delta":{{"content":'
        self._before_thought = f'data: {head[:-1]},"choices":[{{"index":{index},"delta":{{"reasoning_content":'
        no_usage = ',"usage":null' if usage == "own_chunk" else ""
        self._after = f'}},"logprobs":null,"finish_reason":null}}]{no_usage}}}\n\n'

    def choice(self, reply: CompleteReply) -> JsonObject:
        """Return the reply as a choice with a message."""
        message: JsonObject = {"role": "assistant", "content": reply.text, "refusal": None}
        if reply.reasoning and not self._hides_reasoning:
            message.update(_thought(reply.reasoning))
        if reply.tool_calls:
            message["content"] = reply.text or None
            message["tool_calls"] = [_call(call) for call in reply.tool_calls]
        return {
            "index": self._index,
            "message": message,
            "logprobs": {"content": [logprob_payload(item) for item in reply.logprobs]} if reply.logprobs else None,
            "finish_reason": _FINISH_REASONS[reply.completed.finish_reason],
        }

    def start(self, started: Started) -> bytes:
        """Return the chunk with the role."""
        return self._chunk({"role": "assistant", "content": ""})

    def text(self, text: str) -> bytes:
        """Return one chunk. Only the text differs from chunk to chunk, so the rest is prepared once."""
        return f"{self._before}{sse.literal(text)}{self._after}".encode()

    def delta(self, delta: Delta) -> bytes:
        """Return one chunk with thoughts, text, tool calls and log probabilities, or nothing for an empty delta."""
        text, reasoning = delta.text, delta.reasoning
        if not delta.logprobs and not delta.tool_calls and not (text and reasoning):
            # Not `self.text`: a subclass that pads the results of `text` and `delta` would pad this one twice.
            return ChatWriter.text(self, text) if text else self._thought(reasoning)
        content: JsonObject = {"content": text} if text or delta.logprobs else {}
        if reasoning and not self._hides_reasoning:
            content.update(_thought(reasoning))
        if delta.tool_calls:
            content["tool_calls"] = [
                {"index": self._num_calls + offset, **_call(call)} for offset, call in enumerate(delta.tool_calls)
            ]
            self._num_calls += len(delta.tool_calls)
        if not content:
            return b""
        logprobs = {"content": [logprob_payload(item) for item in delta.logprobs]} if delta.logprobs else None
        return self._chunk(content, logprobs=logprobs)

    def end_choice(self, completed: Completed, *, has_usage: bool) -> bytes:
        """Return the chunk with the finish reason."""
        reason = _FINISH_REASONS[completed.finish_reason]
        return self._chunk({}, reason, **self._last_usage(completed, has_usage))

    def _thought(self, text: str) -> bytes:
        """Return one chunk with thoughts. Its constant parts are prepared: a model may think for thousands of tokens."""
        if self._hides_reasoning or not text:
            return b""
        thought = sse.literal(text)
        return f'{self._before_thought}{thought},"reasoning":{thought}{self._after}'.encode()

    def _chunk(
        self, delta: JsonObject, finish_reason: str | None = None, logprobs: object = None, **rest: object
    ) -> bytes:
        choice = {"index": self._index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        return self._event([choice], **rest)


class CompletionWriter(OpenAiWriter):
    """Writes `text_completion`, complete or in chunks, which have the same shape."""

    id_prefix = "cmpl-"
    complete_object = chunk_object = "text_completion"

    def __init__(self, *, request_id: str, model: str, usage: UsagePlace, echo: str, index: int = 0) -> None:
        """Set the reply format.

        Args:
            request_id: Used as the reply's id, after a prefix.
            model: Name of the model as the client wrote it.
            usage: Where a stream reports the usage.
            echo: Text before the reply: the prompt, if the client set `echo`; otherwise empty.
            index: Place of this choice among the choices of the reply.
        """
        super().__init__(request_id=request_id, model=model, usage=usage, index=index)
        self._echo = echo
        self._offset = len(echo)

    def choice(self, reply: CompleteReply) -> JsonObject:
        """Return the reply as a choice with a text."""
        return {
            "index": self._index,
            "text": self._echo + reply.text,
            "logprobs": self._logprobs(reply.logprobs) if reply.logprobs else None,
            "finish_reason": _FINISH_REASONS[reply.completed.finish_reason],
        }

    def start(self, started: Started) -> bytes:
        """Return the chunk with the echo, if there is one."""
        return self.text(self._echo) if self._echo else b""

    def text(self, text: str) -> bytes:
        """Return one chunk with the text."""
        return self._chunk({"text": text})

    def delta(self, delta: Delta) -> bytes:
        """Return one chunk with text and log probabilities, or nothing for an empty delta."""
        if not delta.text and not delta.logprobs:
            return b""
        return self._chunk({"text": delta.text}, logprobs=self._logprobs(list(delta.logprobs)))

    def end_choice(self, completed: Completed, *, has_usage: bool) -> bytes:
        """Return the chunk with the finish reason."""
        reason = _FINISH_REASONS[completed.finish_reason]
        return self._chunk({"text": ""}, reason, **self._last_usage(completed, has_usage))

    def _chunk(
        self, delta: JsonObject, finish_reason: str | None = None, logprobs: object = None, **rest: object
    ) -> bytes:
        return self._event(
            [{"index": self._index, **delta, "logprobs": logprobs, "finish_reason": finish_reason}], **rest
        )

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


def _usage(completed: Completed) -> JsonObject:
    details = {"reasoning_tokens": completed.usage.reasoning_tokens}
    return {**usage_payload(completed, counts_cached=True), "completion_tokens_details": details}


def _thought(text: str) -> JsonObject:
    """Return a message's thoughts under both names that clients read: DeepSeek's and OpenRouter's."""
    return {"reasoning_content": text, "reasoning": text}


def _call(call: ToolCall) -> JsonObject:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def logprob_payload(item: TokenLogprob) -> JsonObject:
    """Return a token's log probability, and its alternatives', as OpenAI writes them."""
    return {**_candidate(item.token), "top_logprobs": [_candidate(top) for top in item.top]}


def _candidate(candidate: pb.Candidate) -> JsonObject:
    return {"token": _text(candidate.text), "logprob": candidate.logprob, "bytes": list(candidate.text)}


def _text(token: bytes) -> str:
    """Return the token's text; a token may end within a character, which then becomes a replacement character."""
    return token.decode(errors="replace")
