"""The types that the commands and the clients share: requests, pieces of replies, models, and the interface `Client`.

Does not depend on a transport: rest.py and rpc.py contain the clients.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from tailrace_cli.errors import Failure, Refusal, UnknownName
from tailrace_shared.catalogue.short_names import Ambiguous, long_name, nearest_name
from tailrace_shared.catalogue.workers_ai import how_to_serve


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A request for a reply. The server's default applies to a field that is None or empty.

    Attributes:
        model: Name of the model.
        prompt: The newest message of the user, or the text to continue if `raw`.
        system: The system message; empty: none.
        raw: True to continue `prompt` without a chat template.
        sampling: Sampling parameters by the names of tailrace_shared/request_fields.py.
        stop: Texts that end the reply.
        schema: JSON Schema that the reply must match, as JSON text.
        turns: Role and content of the earlier messages, oldest first.
        continues: True if the reply continues the last of `turns`, which is an answer. `prompt` is not used then.
    """

    model: str
    prompt: str
    system: str = ""
    raw: bool = False
    sampling: Mapping[str, float] = field(default_factory=dict)
    stop: tuple[str, ...] = ()
    schema: str | None = None
    turns: tuple[tuple[str, str], ...] = ()
    continues: bool = False

    @property
    def messages(self) -> list[tuple[str, str]]:
        """Role and content of every message of the conversation, the prompt or the answer to continue last."""
        system = [("system", self.system)] if self.system else []
        return [*system, *self.turns, *([] if self.continues else [("user", self.prompt)])]


class Piece(NamedTuple):
    """A part of a reply. `is_thinking`: the text belongs to the model's thoughts, not to its answer."""

    text: str
    is_thinking: bool = False


@dataclass(slots=True)
class ReplyStats:
    """Token counts of one reply, and its times as this process measures them.

    Attributes:
        prompt_tokens: Tokens of the prompt; known when the reply is complete.
        completion_tokens: Tokens of the reply; known when the reply is complete.
        finish: The finish reason: "stop", "length", or another word of the server; empty before the end.
        started: Time of the request, in seconds of time.monotonic().
        first: Time at which the first piece of text arrived; None before that.
        last: Time at which the newest piece of text arrived; None before the first.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    finish: str = ""
    started: float = field(default_factory=time.monotonic)
    first: float | None = None
    last: float | None = None

    def __str__(self) -> str:
        parts = [f"{self.prompt_tokens} prompt + {self.completion_tokens} completion tokens"]
        if self.first is not None and self.last is not None:
            parts.append(f"first token after {self.first - self.started:.2f} s")
            if self.completion_tokens > 1 and self.last > self.first:
                parts.append(f"{(self.completion_tokens - 1) / (self.last - self.first):.1f} tokens/s")
        return " · ".join(parts)


@dataclass(frozen=True, slots=True)
class ModelLine:
    """A model as `tailrace models` lists it.

    Attributes:
        name: The name that requests use.
        description: A sentence; empty: none.
        context_length: Longest prompt in tokens; 0: unknown.
        sequence_length: Longest reply in tokens; 0: unknown.
        dimensions: Length of an embedding model's vectors; 0 for other models.
        weights: The loaded weights: a hub id, or the name of a folder or file; empty: unknown.
        precision: Number format of the weights; empty: unknown.
    """

    name: str
    description: str
    context_length: int
    sequence_length: int
    dimensions: int = 0
    weights: str = ""
    precision: str = ""


class Client(Protocol):
    """Interface of a client that calls a server. Both methods may raise Failure or Refusal."""

    def stream(self, request: Request, stats: ReplyStats) -> Iterator[Piece]:
        """Yield the reply piece by piece, and set the token counts and the finish reason of `stats` at the end.

        Closing the iterator cancels the request. Raises TooLong for a prompt that exceeds the model's window.
        """

    def models(self) -> list[ModelLine]:
        """Return the models that the server hosts, in the order of its catalog."""


def full_name(client: Client, name: str) -> str:
    """Return the full name of the served model that `name` abbreviates.

    A name with a slash is returned unchanged, without a request to the server. An empty name selects the first model
    that generates text.

    Raises:
        UnknownName: No served model has this name.
        Failure: The name is ambiguous, or there is no model that generates text.
    """
    return name if "/" in name else served_name(client.models(), name)


def served_name(models: Sequence[ModelLine], name: str) -> str:
    """Return the full name of the model among `models` that `name` abbreviates.

    An empty name selects the first model that generates text.

    Raises:
        UnknownName: None of the models has this name.
        Failure: The name is ambiguous, or there is no model that generates text.
    """
    if not name:
        return first_model(models)
    names = [model.name for model in models]
    try:
        found = long_name(name, names)
    except Ambiguous as error:
        raise Failure(f"{str(error).capitalize()}.") from None
    if found is None:
        raise UnknownName(_unknown(name, names))
    return found


def first_model(models: Sequence[ModelLine]) -> str:
    """Return the name of the first model that generates text. Raises Failure if there is none."""
    known = [model for model in models if not model.dimensions]
    if not known:
        raise Failure("This server has no models that generate text.")
    return known[0].name


def unknown_model(client: Client, name: str) -> Refusal:
    """Return the error for a model that the server refused: it does not exist, or it is an embedding model."""
    try:
        models = client.models()
    except (Failure, Refusal):
        models = []
    if any(model.name == name for model in models):
        return Refusal(f"{name} does not generate text: it is an embedding model.")
    return Refusal(_unknown(name, [model.name for model in models]))


def _unknown(name: str, names: Sequence[str]) -> str:
    """Return the sentences about a name that no model has, with the nearest one of `names` and all `names`."""
    near, step = nearest_name(name, names), how_to_serve(name)
    parts = [
        f"The server has no model {name}.",
        f"Did you mean {near}?" if near else "",
        f"{step[0].upper()}{step[1:]}." if step else "",
        f"The server has {', '.join(names)}." if names else "",
    ]
    return " ".join(filter(None, parts))
