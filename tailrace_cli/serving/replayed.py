"""Describes a folder of recordings for the announcement of `tailrace serve`, with a request that the folder answers."""

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tailrace_cli.environment import variable
from tailrace_shared.config_errors import ConfigurationError
from tailrace_shared.request_fields import SAMPLING_FIELDS

if TYPE_CHECKING:  # the imports of the server's modules take time, and only a replay needs them
    from inference_server.grpc_api.recordings.folder import RecordingsFolder

# Longest body that is announced, in characters.
_MAX_BODY = 400
_NUMBERS = {each.name for each in SAMPLING_FIELDS}
# Profiles with a default of max_tokens for streams, which a body cannot unset.
_PROFILES_WITH_LIMIT = ("2026", "2026-strict")


@dataclass(frozen=True, slots=True)
class Replayed:
    """The recordings of a folder.

    Attributes:
        folder: The folder as the user named it.
        counts: Number of recorded replies by model, in the order of the folder's models.
        model: Model of the request to announce; empty: no request is short and simple enough.
        body: Body of that request for /ai/run, as JSON.
    """

    folder: str
    counts: dict[str, int] = field(default_factory=dict)
    model: str = ""
    body: str = ""


def read_recordings() -> Replayed:
    """Return the recordings of TAILRACE_RECORDINGS. They have no counts if the folder can no longer be read."""
    from inference_server.grpc_api.recordings.canonical import METHODS
    from inference_server.grpc_api.recordings.folder import RecordingsFolder

    name = variable("TAILRACE_RECORDINGS")
    try:
        folder = RecordingsFolder(Path(name), "replay")
    except ConfigurationError:
        return Replayed(name)
    recordings = [each for method in METHODS.values() for each in folder.of_method(method) if each.refusal is None]
    counts = Counter(each.request["model"] for each in recordings)
    ordered = {model: counts[model] for model in (*folder.models, *counts) if counts[model]}
    # Of equally short requests, the one whose model is first in the folder is announced, then the first in text order.
    # A folder therefore always has the same announcement.
    places = {model: place for place, model in enumerate(folder.models)}
    requests = _requests(folder)
    model, body = min(requests, key=lambda each: (len(each[1]), places[each[0]], each[1])) if requests else ("", "")
    return Replayed(name, ordered, model, body)


def _requests(folder: "RecordingsFolder") -> list[tuple[str, str]]:
    """Return model and body of the recorded requests that /ai/run accepts in a short body."""
    from inference_server.grpc_api.recordings.canonical import canonical
    from tailrace.v1 import inference_pb2 as pb

    defaults = {
        name: canonical(pb.RunRequest(model=name), model.sampling_defaults)["sampling"]
        for name, model in folder.models.items()
    }
    requests = [each.request for each in folder.of_method("Run") if each.refusal is None]
    bodies = [
        (request["model"], body)
        for request in requests
        if request["model"] in defaults and (body := _body(request, defaults[request["model"]]))
    ]
    return [(model, body) for model, body in bodies if len(body) <= _MAX_BODY]


def _body(request: dict[str, Any], defaults: dict[str, Any]) -> str:
    """Return the JSON body of a streamed request with this canonical form; empty if it has other fields.

    Args:
        request: The canonical request.
        defaults: Sampling parameters that the canonical form contains if a body does not set them.
    """
    chat, sampling = request.get("chat", {}), request.get("sampling", {})
    turns = chat.get("turns", [])
    is_plain = set(request) <= {"model", "chat", "sampling"} and set(chat) == {"turns"}
    if not is_plain or any(set(turn) != {"role", "content"} for turn in turns):
        return ""
    if not set(sampling) <= {*_NUMBERS, "stop"} or not set(defaults) <= set(sampling):
        return ""
    if "max_tokens" not in sampling and variable("TAILRACE_PROFILE") in _PROFILES_WITH_LIMIT:
        return ""
    is_prompt = [turn["role"] for turn in turns] == ["user"]
    prompt = {"prompt": turns[0]["content"]} if is_prompt else {"messages": turns}
    # 64-bit integers are texts in the JSON of protobuf.
    values = {name: int(value) if isinstance(value, str) else value for name, value in sampling.items()}
    chosen = {name: value for name, value in values.items() if sampling[name] != defaults.get(name)}
    # Requests over gRPC or OpenAI's routes may have values that /ai/run refuses.
    if any(each.name in chosen and chosen[each.name] not in each.rest for each in SAMPLING_FIELDS):
        return ""
    return json.dumps({**prompt, **chosen, "stream": True}, ensure_ascii=False)
