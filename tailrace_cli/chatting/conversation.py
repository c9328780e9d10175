"""A conversation: its model, its settings and its messages, and the file that stores them."""

import contextlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from tailrace_cli.client import Request
from tailrace_cli.errors import Failure
from tailrace_cli.sampling import parse_value

_FORMAT = "tailrace-conversation"
_ROLES = ("user", "assistant")
_MAX_BYTES = 64 * 2**20


@dataclass
class Conversation:
    """The state of a chat.

    Attributes:
        model: Name of the model.
        system: The system message; empty: none.
        sampling: Sampling parameters by name.
        stop: Texts that end a reply.
        schema: JSON Schema that replies must match, as JSON text; None: replies are text.
        turns: Role ("user" or "assistant") and content of the messages, oldest first. Each question has an answer.
    """

    model: str
    system: str = ""
    sampling: dict[str, float] = field(default_factory=dict)
    stop: tuple[str, ...] = ()
    schema: str | None = None
    turns: list[tuple[str, str]] = field(default_factory=list)

    def request(self, prompt: str) -> Request:
        """Return the request for a reply to `prompt` after all messages."""
        return Request(
            model=self.model,
            prompt=prompt,
            system=self.system,
            sampling=dict(self.sampling),
            stop=self.stop,
            schema=self.schema,
            turns=tuple(self.turns),
        )

    def continuation(self) -> Request:
        """Return the request for the rest of the newest answer."""
        return replace(self.request(""), continues=True)

    def add(self, prompt: str, reply: str) -> None:
        """Append a question and its answer."""
        self.turns += [("user", prompt), ("assistant", reply)]

    def extend(self, text: str) -> None:
        """Append text to the newest answer."""
        self.turns[-1] = ("assistant", f"{self.last_reply}{text}")

    def drop_oldest(self, *, num_kept: int = 0) -> bool:
        """Remove the oldest question and its answer. Returns False if only `num_kept` messages are left."""
        found = len(self.turns) > num_kept
        if found:
            del self.turns[:2]
        return found

    def drop_newest(self) -> None:
        """Remove the newest question and its answer, if there is one."""
        del self.turns[-2:]

    @property
    def last_reply(self) -> str:
        """The newest answer; empty: none."""
        return self.turns[-1][1] if self.turns else ""


def save(conversation: Conversation, path: Path) -> None:
    """Write the conversation to a JSON file that only this user can read. An earlier conversation in it is replaced.

    Raises:
        Failure: The file cannot be written, or contains something other than a conversation.
    """
    if os.path.lexists(path):
        try:
            load(path)
        except Failure:
            raise Failure(f"{path} exists, and is not a saved conversation. Choose another name.") from None
    messages = [{"role": role, "content": content} for role, content in conversation.turns]
    document = {"format": _FORMAT, **asdict(conversation), "turns": messages}
    try:
        # A new file that only this user can read. Another user cannot have prepared it.
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with open(descriptor, "w", encoding="utf-8", errors="replace") as file:
                json.dump(document, file, ensure_ascii=False, indent=2)
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
    except OSError as error:
        raise Failure(f"{path} cannot be written: {error.strerror}.") from None


def load(path: Path) -> Conversation:
    """Return the conversation of a file.

    Raises:
        Failure: The file cannot be read, or is not a saved conversation.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise Failure(f"{path} is too large for a saved conversation.")
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise Failure(f"{path} cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict) or document.get("format") != _FORMAT:
        raise Failure(f"{path} is not a conversation that /save wrote.")
    try:
        return _conversation(document)
    except (LookupError, TypeError, ValueError):
        raise Failure(f"{path} is not a complete conversation: a part of it is missing or has a wrong type.") from None


def _conversation(document: Mapping[str, Any]) -> Conversation:
    """Return the conversation of a document. Raises LookupError, TypeError or ValueError for a wrong document."""
    turns = [(each["role"], each["content"]) for each in document["turns"]]
    if [role for role, _ in turns] != [*_ROLES] * (len(turns) // 2):
        raise ValueError("questions and answers must alternate")
    schema = document.get("schema")
    texts = [document["model"], document["system"], *document["stop"], *(content for _, content in turns)]
    if not all(isinstance(text, str) for text in texts) or not isinstance(schema, str | None):
        raise TypeError("a text is required")
    sampling = {name: parse_value(name, str(value)) for name, value in document["sampling"].items()}
    return Conversation(document["model"], document["system"], sampling, tuple(document["stop"]), schema, turns)
