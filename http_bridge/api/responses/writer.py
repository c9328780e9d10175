"""Writes the reply of the Responses API: one Response object, or typed events in the order that OpenAI documents."""

import time
from collections.abc import Callable, Mapping

from http_bridge.api.openai.errors import openai_error
from http_bridge.api.openai.replies import logprob_payload
from http_bridge.api.reply_writer import CompleteReply, JsonObject, ReplyWriter, padding
from http_bridge.api.responses.recent import RECENT_ITEMS
from http_bridge.api.responses.response_object import (
    Request,
    Status,
    call_item,
    end_status,
    message_item,
    reasoning_item,
    reasoning_part,
    response_payload,
    summary_part,
    text_part,
)
from http_bridge.errors import ApiError
from http_bridge.protocol import sse
from tailrace.v1.inference_pb2 import Completed, Delta, Started, TokenLogprob, ToolCall

_TOO_LONG = "context_length_exceeded"
# Codes that a failed response keeps. Every other code becomes server_error.
_CODES = ("rate_limit_exceeded", _TOO_LONG)
_MESSAGE = "message"
_REASONING = "reasoning"


class ResponsesWriter(ReplyWriter):
    """Writes one response. The first piece of an output item opens it. The next item or the end of the reply closes it."""

    def __init__(
        self, request: Request, wrap: Callable[[Mapping[str, object]], bytes], *, has_padding: bool = False
    ) -> None:
        """Set the reply format.

        Args:
            request: The parts of the request that the reply needs.
            wrap: Encodes a complete reply.
            has_padding: Whether the events with text have random characters in `obfuscation`.
        """
        self._request = request
        self._wrap = wrap
        self._has_padding = has_padding
        self._created = int(time.time())
        self._is_started = False
        self._sequence = 0
        self._output: list[JsonObject] = []
        # The open item: its kind (empty: none is open), its id, its pieces of text, and the constant parts of its events.
        self._kind = ""
        self._item_id = ""
        self._pieces: list[str] = []
        self._logprobs: list[TokenLogprob] = []
        self._before = self._after = ""

    def complete(self, reply: CompleteReply) -> bytes:
        """Return the Response object."""
        status = end_status(reply.completed)
        if self._request.hides_thoughts:
            reply.reasoning = ""
        if reply.reasoning:
            is_last = not (reply.text or reply.tool_calls)
            thoughts_status = status if is_last else "completed"
            item = reasoning_item(self._request, self._next_id("rs"), thoughts_status, reply.reasoning)
            self._add(item, len(reply.reasoning))
        if reply.text or not (reply.reasoning or reply.tool_calls):
            item = message_item(self._next_id("msg"), status, [text_part(reply.text, reply.logprobs)])
            self._add(item, len(reply.text))
        for call in reply.tool_calls:
            self._add(call_item(self._request, len(self._output), call), len(call.arguments))
        return self._wrap(self._response(status, reply.completed))

    def start(self, started: Started) -> bytes:
        """Return the events `response.created` and `response.in_progress`."""
        self._is_started = True
        response = self._response("in_progress")
        return self._event("response.created", response=response) + self._event(
            "response.in_progress", response=response
        )

    def text(self, text: str) -> bytes:
        """Return the event of a piece of text, after those that open its item. Its other parts are prepared once."""
        opened = b"" if self._kind == _MESSAGE else self._open_message()
        self._pieces.append(text)
        return opened + self._piece(text)

    def delta(self, delta: Delta) -> bytes:
        """Return the events for thoughts, text and tool calls, in this order."""
        events = self._thoughts(delta.reasoning) if delta.reasoning and not self._request.hides_thoughts else b""
        if delta.logprobs:
            events += self._text_with_logprobs(delta)
        elif delta.text:
            events += self.text(delta.text)
        for call in delta.tool_calls:
            events += self._call(call)
        return events

    def finish(self, completed: Completed) -> bytes:
        """Return the events that close the open item, and the event with the whole response."""
        status = end_status(completed)
        events = self._begin()
        if not self._kind and not self._output:
            events += self._open_message()
        events += self._close(status)
        return events + self._event(f"response.{status}", response=self._response(status, completed))

    def error(self, error: ApiError, request_id: str) -> bytes:
        """Return the events that close the open item, and the event of the failed response."""
        events = self._begin() + self._close("incomplete")
        openai = openai_error(error)
        code = openai["code"] if openai["code"] in _CODES else "server_error"
        details: JsonObject = {"code": code, "message": openai["message"]}
        response = response_payload(self._request, self._created, "failed", self._output, error=details)
        return events + self._event("response.failed", response=response)

    def streams_refusal(self, error: ApiError) -> bool:
        """Return True for a prompt that is too long, if Codex sent it. Codex does not recognise this error by its status."""
        return self._request.is_from_codex and openai_error(error)["code"] == _TOO_LONG

    def _begin(self) -> bytes:
        """Return the events at the beginning, if they were not sent: a reply may fail before it starts."""
        return b"" if self._is_started else self.start(Started())

    def _response(self, status: Status, completed: Completed | None = None) -> JsonObject:
        return response_payload(self._request, self._created, status, self._output, completed)

    def _next_id(self, prefix: str) -> str:
        return self._request.item_id(prefix, len(self._output))

    def _event(self, kind: str, **fields: object) -> bytes:
        payload = {"type": kind, **fields, "sequence_number": self._sequence}
        self._sequence += 1
        return b"event: %b\n%b" % (kind.encode(), sse.event(payload))

    def _item_event(self, kind: str, **fields: object) -> bytes:
        return self._event(kind, item_id=self._item_id, output_index=len(self._output), **fields)

    def _piece(self, text: str) -> bytes:
        """Return the event for a piece of the open item's text."""
        after = f',"obfuscation":"{padding()}"{self._after}' if self._has_padding else self._after
        event = f"{self._before}{sse.literal(text)}{after}{self._sequence}}}\n\n"
        self._sequence += 1
        return event.encode()

    def _prepare(self, kind: str, index: str, after: str) -> None:
        """Set the constant parts of the open item's events, which contain its text as `delta`."""
        self._before = (
            f'event: {kind}\ndata: {{"type":"{kind}","item_id":"{self._item_id}",'
            f'"output_index":{len(self._output)},"{index}":0,"delta":'
        )
        self._after = f'{after},"sequence_number":'

    def _open_message(self) -> bytes:
        events = self._close("completed")
        self._kind, self._item_id, self._pieces, self._logprobs = _MESSAGE, self._next_id("msg"), [], []
        self._prepare("response.output_text.delta", "content_index", ',"logprobs":[]')
        item = message_item(self._item_id, "in_progress", [])
        events += self._event("response.output_item.added", output_index=len(self._output), item=item)
        return events + self._item_event("response.content_part.added", content_index=0, part=text_part(""))

    def _text_with_logprobs(self, delta: Delta) -> bytes:
        opened = b"" if self._kind == _MESSAGE else self._open_message()
        self._pieces.append(delta.text)
        self._logprobs.extend(delta.logprobs)
        return opened + self._item_event(
            "response.output_text.delta",
            content_index=0,
            delta=delta.text,
            logprobs=[logprob_payload(item) for item in delta.logprobs],
        )

    def _thoughts(self, text: str) -> bytes:
        opened = b"" if self._kind == _REASONING else self._open_reasoning()
        self._pieces.append(text)
        return opened + self._piece(text)

    def _open_reasoning(self) -> bytes:
        events = self._close("completed")
        self._kind, self._item_id, self._pieces = _REASONING, self._next_id("rs"), []
        item = reasoning_item(self._request, self._item_id, "in_progress", "")
        events += self._event("response.output_item.added", output_index=len(self._output), item=item)
        if self._request.has_summary:
            self._prepare("response.reasoning_summary_text.delta", "summary_index", "")
            part = summary_part("")
            return events + self._item_event("response.reasoning_summary_part.added", summary_index=0, part=part)
        self._prepare("response.reasoning_text.delta", "content_index", "")
        return events + self._item_event("response.content_part.added", content_index=0, part=reasoning_part(""))

    def _close(self, status: Status) -> bytes:
        """Return the events that close the open item, if there is one."""
        if not self._kind:
            return b""
        is_message = self._kind == _MESSAGE
        events = self._closed_message(status) if is_message else self._closed_reasoning(status)
        self._kind = ""
        return events

    def _closed_message(self, status: Status) -> bytes:
        text = "".join(self._pieces)
        part = text_part(text, self._logprobs)
        events = self._item_event(
            "response.output_text.done", content_index=0, text=text, logprobs=part["logprobs"]
        ) + self._item_event("response.content_part.done", content_index=0, part=part)
        return events + self._done(message_item(self._item_id, status, [part]), len(text))

    def _closed_reasoning(self, status: Status) -> bytes:
        text = "".join(self._pieces)
        if self._request.has_summary:
            events = self._item_event(
                "response.reasoning_summary_text.done", summary_index=0, text=text
            ) + self._item_event("response.reasoning_summary_part.done", summary_index=0, part=summary_part(text))
        else:
            events = self._item_event("response.reasoning_text.done", content_index=0, text=text) + self._item_event(
                "response.content_part.done", content_index=0, part=reasoning_part(text)
            )
        return events + self._done(reasoning_item(self._request, self._item_id, status, text), len(text))

    def _call(self, call: ToolCall) -> bytes:
        """Return all events of a tool call, which arrives complete."""
        events = self._close("completed")
        item = call_item(self._request, len(self._output), call)
        self._item_id = str(item["id"])
        key = "input" if "input" in item else "arguments"
        name = "custom_tool_call_input" if key == "input" else "function_call_arguments"
        end = {key: item[key]} if key == "input" else {key: item[key], "name": item["name"]}
        added = {**item, "status": "in_progress", key: ""}
        return b"".join(
            (
                events,
                self._event("response.output_item.added", output_index=len(self._output), item=added),
                self._item_event(f"response.{name}.delta", delta=item[key]),
                self._item_event(f"response.{name}.done", **end),
                self._done(item, len(call.arguments)),
            )
        )

    def _done(self, item: JsonObject, num_characters: int) -> bytes:
        event = self._event("response.output_item.done", output_index=len(self._output), item=item)
        self._add(item, num_characters)
        return event

    def _add(self, item: JsonObject, num_characters: int) -> None:
        self._output.append(item)
        if self._request.keeps_items:
            RECENT_ITEMS.add(self._request.account, item, num_characters)
