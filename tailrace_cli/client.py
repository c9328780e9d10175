"""The commands run and models: send requests through a `Client` and show the replies in a terminal.

Does not depend on a transport: rest.py and rpc.py contain the clients.
"""

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

from tailrace_cli.errors import Failure
from tailrace_cli.output import dim, write
from tailrace_shared.short_names import Ambiguous, long_name

# Control characters, which a terminal would interpret, except line ends and tabs. They are removed from replies in a
# terminal.
_CONTROLS = dict.fromkeys({*range(0x20), *range(0x7F, 0xA0)} - {ord("\n"), ord("\t")})


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A request for a reply. The server's default applies to a field that is None or empty.

    Attributes:
        model: Name of the model.
        prompt: The newest message of the user, or the text to continue if `raw`.
        system: The system message; empty: none.
        raw: True to continue `prompt` without a chat template.
        max_tokens: Longest reply, in tokens.
        temperature: 0 to 5.
        top_p: Above 0 to 1.
        seed: Seed of the random numbers.
        stop: Texts that end the reply.
        schema: JSON Schema that the reply must match, as JSON text.
        turns: Role and content of the earlier messages, oldest first.
    """

    model: str
    prompt: str
    system: str = ""
    raw: bool = False
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    schema: str | None = None
    turns: tuple[tuple[str, str], ...] = ()

    @property
    def messages(self) -> list[tuple[str, str]]:
        """Role and content of every message of the conversation, the prompt last."""
        system = [("system", self.system)] if self.system else []
        return [*system, *self.turns, ("user", self.prompt)]


@dataclass(slots=True)
class ReplyStats:
    """Token counts and times of one reply, as this process measures them.

    Attributes:
        prompt_tokens: Tokens of the prompt; known when the reply is complete.
        completion_tokens: Tokens of the reply; known when the reply is complete.
        started: Time of the request, in seconds of time.monotonic().
        first: Time at which the first piece of text arrived; None before that.
        last: Time at which the newest piece of text arrived; None before the first.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
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
    """Interface of a client of the models. Both methods may raise Failure or Refusal."""

    def stream(self, request: Request, stats: ReplyStats) -> Iterator[str]:
        """Yield the reply's text piece by piece, and set the token counts of `stats` at the end.

        Closing the iterator cancels the request.
        """

    def models(self) -> list[ModelLine]:
        """Return the models that the server hosts, in the order of its catalog."""


def run(client: Client, request: Request, *, shows_stats: bool) -> None:
    """Print one reply while it is generated; with `shows_stats`, its token counts and times on stderr."""
    stats = ReplyStats()
    print_reply(client, request, stats)
    if shows_stats:
        print(dim(str(stats)), file=sys.stderr)


def models(client: Client) -> None:
    """Print every model with its description and its limits in tokens."""
    for model in client.models():
        write(model.name)
        if model.description:
            write(f"    {model.description}")
        output = f"{model.dimensions} numbers" if model.dimensions else f"{model.sequence_length}"
        write(f"    {model.context_length} tokens in, {output} out")


def full_name(client: Client, name: str) -> str:
    """Return the full name of the served model that `name` abbreviates; empty: the first model that generates text.

    Names with a slash are returned as they are, without a request to the server.

    Raises:
        Failure: No served model has this name, or it is ambiguous.
    """
    if not name:
        return first_model(client)
    if "/" in name:
        return name
    names = [model.name for model in client.models()]
    try:
        found = long_name(name, names)
    except Ambiguous as error:
        raise Failure(f"{str(error).capitalize()}.") from None
    if found is None:
        raise Failure(
            f"The server has no model {name}; it has: {', '.join(names)}. A prompt for its first model needs quotation marks "
            'if it is one word: tailrace run "" Hello'
        )
    return found


def first_model(client: Client) -> str:
    """Return the name of the first model that generates text. Raises Failure if there is none."""
    known = [model for model in client.models() if not model.dimensions]
    if not known:
        raise Failure("This server has no models that generate text.")
    return known[0].name


def print_reply(client: Client, request: Request, stats: ReplyStats) -> str:
    """Print a reply while it is generated, and return its text. `stats` receives its token counts and times."""
    pieces = []
    stream = client.stream(request, stats)
    try:
        for piece in stream:
            stats.last = time.monotonic()
            stats.first = stats.first or stats.last
            pieces.append(piece)
            write(piece.translate(_CONTROLS) if sys.stdout.isatty() else piece, end="")
    finally:
        # After Ctrl-C or a failed write no more text is read. Closing the stream frees the server's slot immediately.
        close = getattr(stream, "close", None)
        if close is not None:
            close()
        if pieces:
            write()
    return "".join(pieces)
