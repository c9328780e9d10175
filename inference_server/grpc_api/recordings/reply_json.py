"""Converts the messages of a reply to JSON that a person can read and compare, and back.

A delta that has only text, and one token, is the text itself. A vector is a string of numbers. Tokens of log
probabilities are text, or hexadecimal bytes if they are not valid UTF-8.
"""

import base64
import json
from collections.abc import Iterator, Sequence
from typing import Any

from google.protobuf.json_format import MessageToDict, ParseDict

from inference_server.grpc_api.conversion import FINISH_REASONS
from inference_server.grpc_api.recordings.canonical import JsonObject
from tailrace.v1 import inference_pb2 as pb

Reply = pb.RunResponse | pb.EmbedResponse | pb.CountTokensResponse
_WIDTH = 118


def reply_json(method: str, reply: Sequence[Reply]) -> Any:
    """Return the JSON value of a reply: a list of events for "Run", else an object.

    The request id and the timings, which differ between two equal replies, are left out. So is the model's name, which
    the request contains.

    Args:
        method: "Run", "Embed" or "CountTokens".
        reply: All events of a Run, or the one message of another method.
    """
    if method == "Run":
        return [_event_json(event) for event in reply if isinstance(event, pb.RunResponse)]
    (value,) = (MessageToDict(each, preserving_proto_field_name=True) for each in reply)
    if method == "Embed":
        for embedding in value.get("embeddings", []):
            embedding["values"] = " ".join(map(repr, embedding["values"]))
    return value


def reply_of_json(method: str, value: Any) -> list[Reply]:
    """Return the messages of a reply: the inverse of `reply_json`.

    Raises:
        ParseError, ValueError, TypeError, KeyError, AttributeError: The value is not the JSON of a complete reply.
    """
    if method == "Run":
        return list(_complete([_event(each) for each in value]))
    if method == "CountTokens":
        return [ParseDict(value, pb.CountTokensResponse())]
    embeddings = [
        {**embedding, "values": [float(number) for number in embedding["values"].split()]}
        for embedding in value["embeddings"]
    ]
    return [ParseDict({**value, "embeddings": embeddings}, pb.EmbedResponse())]


def pretty(value: Any, indent: int = 0) -> str:
    """Return a value as JSON with sorted keys. An array or object that fits into a line is on one line.

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


def _event_json(event: pb.RunResponse) -> JsonObject | str:
    kept = pb.RunResponse()
    kept.CopyFrom(event)
    if kept.HasField("started"):
        kept.started.ClearField("request_id")
        kept.started.ClearField("model")
    elif kept.HasField("completed"):
        kept.completed.ClearField("timings")
    elif kept.delta == pb.Delta(text=kept.delta.text, tokens=1):
        return kept.delta.text
    value: JsonObject = MessageToDict(kept, preserving_proto_field_name=True)
    for candidate in _candidates(value):
        data = base64.b64decode(candidate.pop("text", ""))
        try:
            candidate["text"] = data.decode()
        except UnicodeDecodeError:
            candidate["bytes"] = data.hex()
    return value


def _event(value: Any) -> pb.RunResponse:
    if isinstance(value, str):
        return pb.RunResponse(delta=pb.Delta(text=value, tokens=1))
    if not isinstance(value, dict):
        raise TypeError("an event is neither a text nor an object")
    for candidate in _candidates(value):
        data = bytes.fromhex(candidate.pop("bytes")) if "bytes" in candidate else candidate["text"].encode()
        candidate["text"] = base64.b64encode(data).decode()
    return ParseDict(value, pb.RunResponse())


def _candidates(event: JsonObject) -> Iterator[JsonObject]:
    """Yield the tokens in the log probabilities of an event, chosen ones and alternatives."""
    for logprob in event.get("delta", {}).get("logprobs", []):
        yield logprob["token"]
        yield from logprob.get("top", [])


def _complete(events: list[pb.RunResponse]) -> list[pb.RunResponse]:
    """Return the events of a Run. Raises ValueError if they are not a complete reply."""
    kinds = [event.WhichOneof("event") for event in events]
    if not kinds or kinds[-1] != "completed" or "completed" in kinds[:-1] or "started" in kinds[1:] or None in kinds:
        raise ValueError("the reply is not at most one started, then texts or deltas, then one completed")
    if events[-1].completed.finish_reason not in FINISH_REASONS.values():
        raise ValueError("the reply has no finish reason")
    return events
