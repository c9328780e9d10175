"""Checks the replies of a strict profile: a truncated forced tool call is an error, as on Workers AI."""

from http_bridge.api.reply_writer import CompleteReply, ReplyWriter
from http_bridge.errors import ApiError
from http_bridge.protocol.fidelity import cut_call
from http_bridge.protocol.profiles import Profile
from http_bridge.protocol.run_body import RunBody
from tailrace.v1 import inference_pb2 as pb
from tailrace.v1.inference_pb2 import Completed, Delta, Started

_CUT = (pb.FINISH_REASON_LENGTH, pb.FINISH_REASON_TIME_LIMIT)


def strict(writer: ReplyWriter, body: RunBody, profile: Profile) -> ReplyWriter:
    """Return `writer`, with the check of forced tool calls if the profile is strict and the body forces a call."""
    return StrictWriter(writer) if profile.is_strict and body.tool_choice == "required" else writer


class StrictWriter(ReplyWriter):
    """Passes everything to another writer, except a reply that ended before its forced tool call was complete."""

    def __init__(self, writer: ReplyWriter) -> None:
        self._writer = writer
        self._has_call = False

    def complete(self, reply: CompleteReply) -> bytes:
        """Return the body. Raises ApiError 400/8006 if the reply was truncated before the end of its call."""
        self._check(reply.completed, has_call=bool(reply.tool_calls))
        return self._writer.complete(reply)

    def start(self, started: Started) -> bytes:
        """Return the events before all text."""
        return self._writer.start(started)

    def text(self, text: str) -> bytes:
        """Return the event for a piece of text."""
        return self._writer.text(text)

    def delta(self, delta: Delta) -> bytes:
        """Return the events for a delta."""
        self._has_call = self._has_call or bool(delta.tool_calls)
        return self._writer.delta(delta)

    def finish(self, completed: Completed) -> bytes:
        """Return the events after all text.

        Raises:
            ApiError: 400/8006 if the reply was truncated before its call was complete.
        """
        self._check(completed, has_call=self._has_call)
        return self._writer.finish(completed)

    def error(self, error: ApiError, request_id: str) -> bytes:
        """Return the last event of a stream that failed."""
        return self._writer.error(error, request_id)

    def streams_refusal(self, error: ApiError) -> bool:
        """Return True if the client reads this refusal only from a stream, and not from an HTTP status."""
        return self._writer.streams_refusal(error)

    def _check(self, completed: Completed, *, has_call: bool) -> None:
        if not has_call and completed.finish_reason in _CUT:
            raise cut_call(by_time_limit=completed.finish_reason == pb.FINISH_REASON_TIME_LIMIT)
