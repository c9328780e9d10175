"""Replies as lists of tensors, which the Workers SDK of 2023 (@cloudflare/ai up to 1.0.53) turns into `{"response": …}`.

A tensor is `{"name", "type", "shape", "value"}`. The SDK picks a tensor by its name and appends [DONE] to a stream itself.
The tensor names of request and reply depend on the family that the SDK assigns to the model.
"""

from dataclasses import dataclass

from http_bridge.api.reply_writer import CompleteReply, JsonObject, ReplyWriter, error_message, json_bytes
from http_bridge.errors import ApiError
from http_bridge.protocol import sse
from tailrace.v1.inference_pb2 import Completed, Delta, Started


@dataclass(frozen=True, slots=True)
class Family:
    """Tensor names of one family of models in the SDK.

    Attributes:
        prompt: Name of the tensor with the prompt.
        replies: Names of the tensors with the reply; the SDK picks one of them.
        echoes: Whether the SDK removes the prompt from the start of the reply, so the reply must begin with it.
    """

    prompt: str
    replies: tuple[str, ...]
    echoes: bool = False


FAMILIES = (
    Family(prompt="INPUT_0", replies=("name", "generated_text")),
    Family(prompt="text_input", replies=("name",), echoes=True),
)


class TensorWriter(ReplyWriter):
    """Writes `{"result": [tensor…]}`."""

    def __init__(self, family: Family, prompt: str) -> None:
        self._names = family.replies
        self._echo = prompt if family.echoes else ""

    def complete(self, reply: CompleteReply) -> bytes:
        """Return the tensors with the whole text."""
        return json_bytes(self._result(self._echo + reply.text))

    def start(self, started: Started) -> bytes:
        """Return an event with the prompt, if the family echoes it."""
        return self.text(self._echo) if self._echo else b""

    def text(self, text: str) -> bytes:
        """Return one event with the text."""
        return sse.event(self._result(text))

    def delta(self, delta: Delta) -> bytes:
        """Return one event with the text, or nothing if there is no text."""
        return self.text(delta.text) if delta.text else b""

    def finish(self, completed: Completed) -> bytes:
        """Return nothing: the SDK ends the stream itself."""
        return b""

    def error(self, error: ApiError, request_id: str) -> bytes:
        """Return an event with the error and without tensors."""
        return sse.event({"result": [], "errors": [{"code": error.code, "message": error_message(error, request_id)}]})

    def _result(self, text: str) -> JsonObject:
        return {"result": [{"name": name, "type": "str", "shape": [1], "value": [text]} for name in self._names]}
