"""Replies as lists of tensors, which the Workers SDK of 2023 (@cloudflare/ai up to 1.0.53) turns into `{"response": …}`.

A tensor is `{"name", "type", "shape", "value"}`. The SDK takes a reply apart by its name and appends [DONE] to a stream
itself. Which names it asks with and waits for depends on the family that it counts the model to.
"""

from dataclasses import dataclass

from http_bridge.api.reply_writer import JsonObject, ReplyForm, Whole, error_message
from http_bridge.api.workers_ai.replies import json_bytes
from http_bridge.errors import ApiError
from http_bridge.protocol import sse
from tailrace.v1.inference_pb2 import Completed, Delta, Started


@dataclass(frozen=True, slots=True)
class Family:
    """prompt: name of the tensor that asks. replies: names of those that answer; the SDK takes the one it knows.

    echoes: the SDK cuts the prompt off what answers, so it must precede the reply.
    """

    prompt: str
    replies: tuple[str, ...]
    echoes: bool = False


FAMILIES = (
    Family(prompt="INPUT_0", replies=("name", "generated_text")),
    Family(prompt="text_input", replies=("name",), echoes=True),
)


class TensorForm(ReplyForm):
    """`{"result": [tensor…]}`."""

    def __init__(self, family: Family, prompt: str) -> None:
        self._names = family.replies
        self._echo = prompt if family.echoes else ""

    def whole(self, reply: Whole) -> bytes:
        return json_bytes(self._result(self._echo + reply.text))

    def opening(self, started: Started) -> bytes:
        return self.text(self._echo) if self._echo else b""

    def text(self, text: str) -> bytes:
        return sse.event(self._result(text))

    def delta(self, delta: Delta) -> bytes:
        return self.text(delta.text) if delta.text else b""

    def end(self, completed: Completed) -> bytes:
        return b""

    def failure(self, error: ApiError, request_id: str) -> bytes:
        return sse.event({"result": [], "errors": [{"code": error.code, "message": error_message(error, request_id)}]})

    def _result(self, text: str) -> JsonObject:
        return {"result": [{"name": name, "type": "str", "shape": [1], "value": [text]} for name in self._names]}
