"""Recordings: canonical requests with their replies or refusals, and the JSON files that store them.

A file is small, readable and easy to compare: keys are sorted, and an event takes one line if it fits. Request ids and
timings are not stored. Neither is the key: it is computed from the request, so that a request may be edited by hand.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from google.protobuf.json_format import ParseError

from inference_server.generation import (
    Candidate,
    Completed,
    Delta,
    Event,
    Started,
    Timings,
    TokenLogprob,
    ToolCall,
    Usage,
)
from inference_server.grpc_api.conversion import FINISH_REASONS
from inference_server.grpc_api.recordings import canonical
from inference_server.grpc_api.recordings.canonical import METHODS, JsonObject
from inference_server.grpc_api.recordings.refusal_json import refusal_of_json
from inference_server.grpc_api.recordings.reply_json import Reply, pretty, reply_json, reply_of_json
from tailrace.v1 import inference_pb2 as pb

FORMAT = "tailrace_recording"
_VERSION = 1
_REASONS = {value: reason for reason, value in FINISH_REASONS.items()}


@dataclass(frozen=True, slots=True)
class Recording:
    """A canonical request with its reply, or with the error by which the model refused it.

    Attributes:
        method: "Run", "Embed" or "CountTokens".
        request: The canonical request.
        reply: All events of a Run, or the one message of another method. The file omits request ids and timings. Empty
            for a refused request.
        refusal: The JSON of the error of a refused Run; None: it was not refused.
    """

    method: str
    request: JsonObject
    reply: Sequence[Reply]
    refusal: JsonObject | None = None

    @property
    def key(self) -> str:
        """The hash of `method` and `request`."""
        return canonical.key(self.method, self.request)

    def to_text(self) -> str:
        """Return the text of the recording's file."""
        fields = {FORMAT: _VERSION, "method": self.method, "request": self.request}
        fields |= {"reply": reply_json(self.method, self.reply)} if self.refusal is None else {"error": self.refusal}
        return (
            "{\n" + ",\n".join(f"  {json.dumps(name)}: {pretty(value, 2)}" for name, value in fields.items()) + "\n}\n"
        )

    @classmethod
    def of_text(cls, text: str) -> "Recording":
        """Parse the text of a recording's file.

        Raises:
            ValueError: The text is not a recording. The message is a clause about it, such as "is not JSON".
        """
        document = _document(text)
        method = str(document.get("method"))
        if method not in METHODS.values():
            raise ValueError(f"is a recording of the method {method}, which this version does not replay")
        try:
            request: JsonObject = document["request"]
            _ = request["model"], canonical.prompt_text(request)
            if "error" in document:
                if method != "Run":
                    raise ValueError(f"a refusal of the method {method} is not replayed")
                _ = refusal_of_json(document["error"])
                return cls(method, request, [], document["error"])
            return cls(method, request, reply_of_json(method, document["reply"]))
        except (ParseError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"is damaged ({type(error).__name__}: {error})") from None

    def events(self) -> Iterator[Event]:
        """Yield the events of a Run as an engine would. Deltas have the current time, and phases a duration of 0."""
        bytes_of: dict[bytes, int] = {text: token_id for token_id, text in enumerate(self._token_texts())}
        for message in self.reply:
            assert isinstance(message, pb.RunResponse)
            match message.WhichOneof("event"):
                case "started":
                    yield Started(message.started.prompt_tokens, message.started.seed)
                case "delta":
                    yield _delta(message.delta, bytes_of)
                case _:
                    yield _completed(message.completed)

    def token_bytes(self) -> Callable[[int], bytes]:
        """Return the function that returns the bytes of a token id in `events`."""
        return self._token_texts().__getitem__

    def _token_texts(self) -> list[bytes]:
        """Return the bytes of the distinct tokens of all log probabilities. A token's index is its id in `events`."""
        reported = [
            candidate.text
            for message in self.reply
            if isinstance(message, pb.RunResponse)
            for logprob in message.delta.logprobs
            for candidate in (logprob.token, *logprob.top)
        ]
        return list(dict.fromkeys(reported))


def _document(text: str) -> JsonObject:
    try:
        document = json.loads(text)
    except RecursionError:
        raise ValueError("is nested too deep") from None
    except ValueError as error:
        raise ValueError(f"is not JSON ({error})") from None
    if not isinstance(document, dict) or FORMAT not in document:
        raise ValueError("is not a recording")
    if document[FORMAT] != _VERSION:
        raise ValueError(f"has the format {document[FORMAT]}, and this version reads format {_VERSION}")
    return document


def _delta(delta: pb.Delta, token_ids: dict[bytes, int]) -> Delta:
    def candidate(item: pb.Candidate) -> Candidate:
        return Candidate(token_ids[item.text], item.logprob)

    return Delta(
        text=delta.text,
        num_tokens=delta.tokens,
        logprobs=tuple(
            TokenLogprob(candidate(each.token), tuple(candidate(item) for item in each.top)) for each in delta.logprobs
        ),
        tool_calls=tuple(ToolCall(call.id, call.name, call.arguments) for call in delta.tool_calls),
        last_token=time.monotonic(),
        reasoning=delta.reasoning,
    )


def _completed(completed: pb.Completed) -> Completed:
    usage = completed.usage
    return Completed(
        finish_reason=_REASONS[completed.finish_reason],
        stop_string=completed.stop_string if completed.HasField("stop_string") else None,
        usage=Usage(usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens, usage.reasoning_tokens),
        timings=Timings(0.0, 0.0, 0.0),
    )
