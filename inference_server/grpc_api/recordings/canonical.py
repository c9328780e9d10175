"""Turns requests into their canonical form: a JSON object with everything that determines the reply, and nothing else.

Requests with the same canonical form have the same recording. Request ids, accounts, priorities, traces and other
metadata are not part of it. A sampling parameter that a request does not set has the model's default, or else the
server's.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from google.protobuf.json_format import MessageToDict, ParseDict

from inference_server.generation import PENALTIES, SamplingParams
from inference_server.grpc_api.conversion import demands_form
from tailrace.v1 import inference_pb2 as pb

JsonObject = dict[str, Any]
Request = pb.RunRequest | pb.EmbedRequest | pb.CountTokensRequest
# Names of the methods in recordings.
METHODS: dict[type[Request], str] = {
    pb.RunRequest: "Run",
    pb.EmbedRequest: "Embed",
    pb.CountTokensRequest: "CountTokens",
}
# Fields that affect the acceptance or scheduling of a request, but not its reply.
_LEFT_OUT = ("account", "priority", "reject_if_busy", "max_tokens_must_fit", "refuse_long_texts")
_SERVER_DEFAULTS = ParseDict(
    {
        field.name: field.default
        for field in fields(SamplingParams)
        if field.name in pb.Sampling.DESCRIPTOR.fields_by_name and isinstance(field.default, float)
    },
    pb.Sampling(),
)
_KEY_LENGTH = 16  # hexadecimal digits


def canonical(request: Request, defaults: pb.Sampling) -> JsonObject:
    """Return the canonical form of a request that has passed validation.

    Args:
        request: The request.
        defaults: The model's sampling parameters for requests that do not set them.
    """
    kept: Any = type(request)()
    kept.CopyFrom(request)
    for name in _LEFT_OUT:
        if name in kept.DESCRIPTOR.fields_by_name:
            kept.ClearField(name)
    if isinstance(kept, pb.RunRequest):
        kept.sampling.CopyFrom(_sampling(kept, defaults))
    if isinstance(kept, pb.RunRequest | pb.CountTokensRequest) and kept.chat.tool_choice == pb.TOOL_CHOICE_AUTO:
        kept.chat.tool_choice = pb.TOOL_CHOICE_UNSPECIFIED
    return _with_parsed_texts(MessageToDict(kept, preserving_proto_field_name=True))


def key(method: str, request: JsonObject) -> str:
    """Return the hash of a method's name and a canonical request: 16 hexadecimal digits."""
    text = json.dumps([method, request], sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:_KEY_LENGTH]


def prompt_text(request: JsonObject) -> str:
    """Return the text by which a person recognises a request.

    It is the last user turn that has text, the raw prompt, or the first text to embed.
    """
    turns = request.get("chat", {}).get("turns", [])
    texts = [turn["content"] for turn in turns if turn.get("content") and turn.get("role") == "user"]
    return str(texts[-1] if texts else request.get("text") or next(iter(request.get("texts", [])), ""))


def _sampling(request: pb.RunRequest, defaults: pb.Sampling) -> pb.Sampling:
    sampling, given = pb.Sampling(), pb.Sampling()
    sampling.CopyFrom(_SERVER_DEFAULTS)
    given.CopyFrom(defaults)
    if demands_form(request):
        for name in PENALTIES:
            given.ClearField(name)
    sampling.MergeFrom(given)
    sampling.MergeFrom(request.sampling)
    return sampling


def _with_parsed_texts(request: JsonObject) -> JsonObject:
    """Parse the JSON texts in a request in place, so that spaces and the order of keys make no difference."""
    for holder, name in _json_texts(request):
        try:
            value = json.loads(holder[name])
            # An escaped half of a surrogate pair is JSON, but no file can contain it. Such a text stays as it is.
            json.dumps(value, ensure_ascii=False).encode()
        except (ValueError, RecursionError):  # ValueError: also a text that is not JSON, which the server refuses
            continue
        holder[name] = value
    return request


def _json_texts(request: JsonObject) -> Iterator[tuple[JsonObject, str]]:
    chat = request.get("chat", {})
    calls = [call for turn in chat.get("turns", []) for call in turn.get("tool_calls", [])]
    holders = [
        *((tool, "parameters") for tool in chat.get("tools", [])),
        *((call, "arguments") for call in calls),
        (chat, "template_arguments"),
        (request.get("response_format", {}), "json_schema"),
    ]
    return ((holder, name) for holder, name in holders if name in holder)
