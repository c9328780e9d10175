"""A recording: a canonical request with its reply, and its text, a JSON file that is small, readable and easy to compare.

The text has sorted keys, one line for each event of a stream, and neither times nor ids. The events' timings are not
recorded. The key is not stored: it is computed from the request, so that a request may be edited by hand.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.json_format import MessageToDict, ParseDict, ParseError

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
from inference_server.grpc_api.recordings.canonical import JsonObject
from tailrace.v1 import inference_pb2 as pb

Unary = pb.EmbedResponse | pb.CountTokensResponse
FORMAT = "tailrace_recording"
_VERSION = 1
_WIDTH = 118
_REASONS = {value: reason for reason, value in FINISH_REASONS.items()}


@dataclass(frozen=True, slots=True)
class Recording:
    """A canonical request with its reply.

    Attributes:
        method: "Run", "Embed" or "CountTokens".
        request: The canonical request.
        reply: The messages of the reply: all events of a Run, without ids and timings, else one message.
    """

    method: str
    request: JsonObject
    reply: Sequence[pb.RunResponse | Unary]

    @property
    def key(self) -> str:
        """The hash of the request."""
        return canonical.key(self.method, self.request)

    def to_text(self) -> str:
        """Return the recording's file."""
        replies = [MessageToDict(_stable(each), preserving_proto_field_name=True) for each in self.reply]
        if self.method == "Embed":
            for embedding in replies[0].get("embeddings", []):
                embedding["values"] = " ".join(map(repr, embedding["values"]))
        fields = {
            FORMAT: _VERSION,
            "method": self.method,
            "request": self.request,
            "reply": replies if self.method == "Run" else replies[0],
        }
        return (
            "{\n" + ",\n".join(f"  {json.dumps(name)}: {pretty(value, 2)}" for name, value in fields.items()) + "\n}\n"
        )

    @classmethod
    def of_text(cls, text: str) -> "Recording":
        """Return the recording of a file. Raises ValueError with a clause about the text, such as "is not JSON"."""
        document = _document(text)
        method, request, reply = (document.get(name) for name in ("method", "request", "reply"))
        try:
            if method == "Run":
                return cls(method, _object(request), _events(reply))
            if method == "Embed":
                return cls(method, _object(request), [_embeddings(reply)])
            if method == "CountTokens":
                return cls(method, _object(request), [ParseDict(_object(reply), pb.CountTokensResponse())])
        except (ParseError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"has a damaged request or reply ({error})") from None
        raise ValueError(f"is a recording of the method {method!r}, which this version does not replay")

    def events(self) -> Iterator[Event]:
        """Yield the events of a Run as an engine would. Their times are now; the phases took 0 seconds."""
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
        """Return the function from the token ids in `events` to the tokens' bytes."""
        return self._token_texts().__getitem__

    def _token_texts(self) -> list[bytes]:
        """Return the different tokens of all log probabilities. A token's index is its id in `events`."""
        reported = [
            candidate.text
            for message in self.reply
            if isinstance(message, pb.RunResponse)
            for logprob in message.delta.logprobs
            for candidate in (logprob.token, *logprob.top)
        ]
        return list(dict.fromkeys(reported))


def pretty(value: Any, indent: int = 0) -> str:
    """Return a value as JSON with sorted keys. What fits into a line is on one line.

    `indent`: number of spaces before the line on which the value begins.
    """
    line = json.dumps(value, sort_keys=True, ensure_ascii=False)
    if len(line) + indent <= _WIDTH or not isinstance(value, dict | list):
        return line
    space = " " * (indent + 2)
    if isinstance(value, dict):
        items = [f"{json.dumps(name, ensure_ascii=False)}: {pretty(value[name], indent + 2)}" for name in sorted(value)]
    else:
        items = [pretty(item, indent + 2) for item in value]
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    return f"{opening}\n{space}" + f",\n{space}".join(items) + f"\n{' ' * indent}{closing}"


def _stable(message: pb.RunResponse | Unary) -> pb.RunResponse | Unary:
    """Return a copy without what differs between two equal replies: the id and the timings."""
    kept: Any = type(message)()
    kept.CopyFrom(message)
    if isinstance(kept, pb.RunResponse):
        if kept.HasField("started"):
            kept.started.ClearField("request_id")
            kept.started.ClearField("model")
        elif kept.HasField("completed"):
            kept.completed.ClearField("timings")
    return kept  # type: ignore[no-any-return]


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


def _object(value: Any) -> JsonObject:
    if not isinstance(value, dict):
        raise TypeError("it is not an object")
    return value


def _events(reply: Any) -> list[pb.RunResponse]:
    """Return the events of a Run. Raises ParseError or ValueError if they are not a complete reply."""
    events = [ParseDict(_object(each), pb.RunResponse()) for each in reply]
    kinds = [event.WhichOneof("event") for event in events]
    if not kinds or kinds[-1] != "completed" or "completed" in kinds[:-1] or "started" in kinds[1:] or None in kinds:
        raise ValueError("has an incomplete reply: it is at most one started, deltas, and one completed")
    if events[-1].completed.finish_reason not in _REASONS:
        raise ValueError("has a reply without a finish reason")
    return events


def _embeddings(reply: Any) -> pb.EmbedResponse:
    embeddings = [
        {**embedding, "values": [float(number) for number in embedding["values"].split()]}
        for embedding in _object(reply)["embeddings"]
    ]
    return ParseDict({**reply, "embeddings": embeddings}, pb.EmbedResponse())


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
