"""Builds each HTTP server's request for a stream of a fixed length, and parses its events. Does no I/O."""

import json
from abc import ABC, abstractmethod
from typing import Any

from benchmarks.load.load import Record, Request

Reads = list[tuple[float, bytes]]


class Dialect(ABC):
    """Requests and events of one kind of HTTP server."""

    def __init__(self, fields: dict[str, Any]) -> None:
        self.fields = fields

    @abstractmethod
    def request(self, request: Request) -> tuple[str, dict[str, Any]]:
        """Return the request's path and JSON body."""

    @abstractmethod
    def text(self, event: dict[str, Any]) -> str:
        """Return the text that an event adds to the reply. It may be empty."""

    def count(self, event: dict[str, Any], request: Request, record: Record) -> None:
        """Copy an event's token counts, if it has any, to `record`."""
        if usage := event.get("usage"):
            record.prompt_tokens = usage["prompt_tokens"]
            record.completion_tokens = usage["completion_tokens"]

    def record(self, request: Request, start: float, reads: Reads) -> Record:
        """Return the reply's record from the bytes that arrived."""
        record = Record(start=start)
        status, events = events_of(reads)
        for arrived, event in events:
            if event == "[DONE]":
                continue
            value = json.loads(event)
            if text := self.text(value):
                record.text += text
                record.events.append(arrived)
            self.count(value, request, record)
            if value.get("error") or value.get("errors"):
                record.error = event[:300]
        if status != 200:
            record.error = f"HTTP {status}: {b''.join(data for _, data in reads)[-300:].decode(errors='replace')}"
        return record


class WorkersAi(Dialect):
    """Tailrace's bridge. The server ignores end tokens (launch_server.py), so that replies have the requested length."""

    def request(self, request: Request) -> tuple[str, dict[str, Any]]:
        body: dict[str, Any] = {"stream": True, "max_tokens": request.max_tokens, "temperature": 0}
        if request.messages is not None:
            body["messages"] = request.messages
        else:
            body |= {"prompt": request.text, "raw": True}
        if request.schema is not None:
            body["response_format"] = {"type": "json_schema", "json_schema": request.schema}
        return f"/client/v4/accounts/local/ai/run/{self.fields['model']}", body

    def text(self, event: dict[str, Any]) -> str:
        return str(event.get("response", ""))


class Vllm(Dialect):
    """vLLM's server, which accepts token ids and ignores end tokens on request."""

    def request(self, request: Request) -> tuple[str, dict[str, Any]]:
        body: dict[str, Any] = {
            "model": self.fields["model"],
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_tokens": request.max_tokens,
            "temperature": 0,
            "ignore_eos": True,
        }
        if request.messages is not None:
            return "/v1/chat/completions", body | {"messages": request.messages}
        return "/v1/completions", body | {"prompt": request.prompt_ids}

    def text(self, event: dict[str, Any]) -> str:
        choices = event.get("choices") or [{}]
        return str(choices[0].get("text") or (choices[0].get("delta") or {}).get("content") or "")


class LlamaCpp(Vllm):
    """llama-cpp-python's server. Prompts are sent as text, and a logit bias prevents end tokens.

    This server sends no token counts with a stream. A reply with finish reason `length` has the requested length.
    """

    def request(self, request: Request) -> tuple[str, dict[str, Any]]:
        body: dict[str, Any] = {
            "stream": True,
            "max_tokens": request.max_tokens,
            "temperature": 0,
            "logit_bias": self.fields["logit_bias"],
            "logit_bias_type": "input_ids",
            "repeat_penalty": 1.0,
        }
        if request.messages is not None:
            return "/v1/chat/completions", body | {"messages": request.messages}
        return "/v1/completions", body | {"prompt": request.text}

    def count(self, event: dict[str, Any], request: Request, record: Record) -> None:
        if any(choice.get("finish_reason") == "length" for choice in event.get("choices") or []):
            record.completion_tokens = request.max_tokens


_DIALECTS: dict[str, type[Dialect]] = {"workers-ai": WorkersAi, "vllm": Vllm, "llama-cpp": LlamaCpp}


def dialect(name: str, fields: dict[str, Any]) -> Dialect:
    """Return the dialect `name`. `fields`: constant request fields for this server, such as the model."""
    return _DIALECTS[name](fields)


def events_of(reads: Reads) -> tuple[int, list[tuple[float, str]]]:
    """Return the HTTP status and the server-sent events, each with the arrival time of its last byte.

    Without a complete header, the status is 0 and there are no events.
    """
    head, separator, _ = b"".join(data for _, data in reads).partition(b"\r\n\r\n")
    if not separator:
        return 0, []
    status = int(head.split(b" ", 2)[1])
    body = _Body(is_chunked=b"transfer-encoding: chunked" in head.lower())
    skip, events, text = len(head) + 4, [], b""
    for arrived, data in reads:
        skipped = min(skip, len(data))
        skip -= skipped
        text += body.feed(data[skipped:]).replace(b"\r\n", b"\n")
        *whole, text = text.split(b"\n\n")
        events += [(arrived, event[6:].decode()) for event in whole if event.startswith(b"data: ")]
    return status, events


class _Body:
    """Removes the framing of chunked transfer encoding from a body as its bytes arrive. Other bodies stay unchanged."""

    def __init__(self, *, is_chunked: bool) -> None:
        self._is_chunked = is_chunked
        self._waiting = b""
        self._left = 0  # bytes of the chunk that have not arrived yet, including its line end

    def feed(self, data: bytes) -> bytes:
        if not self._is_chunked:
            return data
        self._waiting += data
        found = b""
        while self._waiting:
            if self._left:
                piece, self._waiting = self._waiting[: self._left], self._waiting[self._left :]
                found += piece[: max(0, self._left - 2)]
                self._left -= len(piece)
                continue
            size, separator, rest = self._waiting.partition(b"\r\n")
            if not separator:
                break
            self._waiting = rest
            self._left = int(size, 16) + 2 if size else 0
        return found
