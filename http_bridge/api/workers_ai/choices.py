"""Replies of models with `shape = "choices"`: OpenAI's chat completion with Workers AI's envelope and end of stream."""

from collections.abc import Callable

from http_bridge.api.openai.replies import ChatWriter
from http_bridge.api.reply_writer import JsonObject, padding
from http_bridge.api.workers_ai.replies import error_event, run_usage
from http_bridge.errors import ApiError
from http_bridge.protocol import sse
from http_bridge.protocol.profiles import Profile
from tailrace.v1.inference_pb2 import Completed, Delta, Started

_END_OF_EVENT = b"}\n\n"


class ChoicesWriter(ChatWriter):
    """Writes `chat.completion` in an envelope, or its chunks, then one event with the usage in Workers AI's format."""

    def __init__(
        self,
        profile: Profile,
        wrap: Callable[[bytes], bytes],
        *,
        request_id: str,
        model: str,
        has_padding: bool,
        includes_usage: bool,
        hides_reasoning: bool,
        index: int = 0,
    ) -> None:
        """Set the reply format.

        Args:
            profile: The API version, which determines usage, padding and reasoning.
            wrap: Adds the envelope to the JSON of a complete reply.
            request_id: Used as the reply's id, after a prefix.
            model: Name of the model as the client wrote it.
            has_padding: Whether the settings enable padding in streams.
            includes_usage: Whether a stream has OpenAI's chunk with the usage too.
            hides_reasoning: Whether the model's thoughts are left out.
            index: Place of this choice among the choices of the reply.
        """
        super().__init__(
            request_id=request_id,
            model=model,
            usage="own_chunk" if includes_usage else "nowhere",
            index=index,
            hides_reasoning=hides_reasoning or not profile.has_reasoning,
        )
        self._profile = profile
        self._wrap = wrap
        self._has_padding = has_padding or profile.has_padding

    def answer(self, choices: list[JsonObject], completed: Completed) -> bytes:
        """Return the `chat.completion` object in its envelope."""
        return self._wrap(super().answer(choices, completed))

    def start(self, started: Started) -> bytes:
        """Return the chunk with the role."""
        return self._padded(super().start(started))

    def text(self, text: str) -> bytes:
        """Return one chunk with the text."""
        return self._padded(super().text(text))

    def delta(self, delta: Delta) -> bytes:
        """Return the chunks of a delta, or nothing for an empty one."""
        return self._padded(super().delta(delta))

    def end(self, completed: Completed) -> bytes:
        """Return the end, after OpenAI's chunk and Workers AI's event with the usage, if the stream has them."""
        data = super().end(completed)
        if not self._profile.has_usage:
            return data
        usage = run_usage(completed, counts_cached=True)
        return data.removesuffix(sse.DONE) + sse.event({"response": "", "usage": usage}) + sse.DONE

    def error(self, error: ApiError, request_id: str) -> bytes:
        """Return an event with the error in Workers AI's format."""
        return error_event(error, request_id)

    def _padded(self, data: bytes) -> bytes:
        if not self._has_padding or not data:
            return data
        return data.removesuffix(_END_OF_EVENT) + f',"p":"{padding()}"'.encode() + _END_OF_EVENT
