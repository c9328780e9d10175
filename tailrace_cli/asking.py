"""Asking models from a terminal: one prompt, a conversation, a list. Knows terminals; whom it asks is behind a `Door`."""

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Protocol

HOW_TO_INSTALL = "To serve, in a clone of Tailrace: pip install '.[server,bridge]', or make run."
# Characters that a terminal obeys instead of showing; a reply may keep its line ends and tabs.
_CONTROLS = dict.fromkeys({*range(0x20), *range(0x7F, 0xA0)} - {ord("\n"), ord("\t")})


class Failure(Exception):
    """Something that is not there or does not work; the message is a sentence for the user."""


class Refusal(Exception):
    """A request that was refused, or failed; the message is a sentence for the user."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What to ask; None and empty mean that the server's default counts. `turns`: role and content, oldest first."""

    model: str
    prompt: str
    system: str = ""
    raw: bool = False
    max_tokens: int | None = None
    temperature: float | None = None
    seed: int | None = None
    turns: tuple[tuple[str, str], ...] = ()

    @property
    def messages(self) -> list[tuple[str, str]]:
        """The whole conversation, the prompt last."""
        system = [("system", self.system)] if self.system else []
        return [*system, *self.turns, ("user", self.prompt)]


@dataclass(slots=True)
class Figures:
    """Tokens of prompt and reply, known at the reply's end, and seconds on this side of the wire."""

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
    """A model as it is listed. Lengths in tokens; 0: not told."""

    name: str
    description: str
    context_length: int
    sequence_length: int


class Door(Protocol):
    """A way to the models. Both methods raise Failure and Refusal."""

    def stream(self, ask: Ask, figures: Figures) -> Iterator[str]:
        """The reply's text, piece by piece; its token counts are in `figures` at the end. Closing it cancels the run."""

    def models(self) -> list[ModelLine]: ...


def run(door: Door, ask: Ask, *, shows_figures: bool) -> None:
    """Print one reply as it comes."""
    figures = Figures()
    _printed(door, ask, figures)
    if shows_figures:
        print(_dim(str(figures)), file=sys.stderr)


def chat(door: Door, ask: Ask) -> None:
    """Read turns until an empty line or the end of the input. A turn that fails is told, and the conversation goes on."""
    model = ask.model or _first_model(door)
    print(_dim(f"Talking to {model}. An empty line ends, Ctrl-C cuts a reply short."), file=sys.stderr)
    turns: list[tuple[str, str]] = []
    while prompt := _read_line():
        figures = Figures()
        try:
            text = _printed(door, replace(ask, model=model, prompt=prompt, turns=tuple(turns)), figures)
        except Refusal as error:
            print(error, file=sys.stderr)
            continue
        except KeyboardInterrupt:
            print(flush=True)
            continue
        turns += [("user", prompt), ("assistant", text)]
        print(_dim(str(figures)), file=sys.stderr)


def models(door: Door) -> None:
    """Print every model, its limits and what it is."""
    for model in door.models():
        print(model.name)
        if model.description:
            print(f"    {model.description}")
        print(f"    {model.context_length} tokens in, {model.sequence_length} out")


def _first_model(door: Door) -> str:
    known = door.models()
    if not known:
        raise Failure("This server has no models.")
    return known[0].name


def _read_line() -> str:
    try:
        return input(_dim("> ") if sys.stdin.isatty() else "").strip()
    except EOFError:
        return ""


def _printed(door: Door, ask: Ask, figures: Figures) -> str:
    pieces = []
    stream = door.stream(ask, figures)
    try:
        for piece in stream:
            figures.last = time.monotonic()
            figures.first = figures.first or figures.last
            pieces.append(piece)
            print(piece.translate(_CONTROLS) if sys.stdout.isatty() else piece, end="", flush=True)
    finally:
        # However it ends, nobody is left to read on: the server frees the slot at once.
        close = getattr(stream, "close", None)
        if close is not None:
            close()
        if pieces:
            print(flush=True)
    return "".join(pieces)


def _dim(text: str) -> str:
    return f"\033[2m{text}\033[0m" if sys.stderr.isatty() else text
