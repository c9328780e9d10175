"""Reads the messages of a chat: from a terminal with line editing, else line by line from the input.

A message of several lines begins and ends with three quotation marks. With prompt_toolkit, Alt+Enter also begins a new
line, and pasted text keeps its lines. Without it, Python's readline edits single lines.
"""

import contextlib
import importlib.util
import os
import sys
from pathlib import Path
from typing import Protocol

from tailrace_cli.chatting import history
from tailrace_cli.chatting.message_text import CONTINUATION, PROMPT, Complete, is_open, unquoted
from tailrace_cli.errors import Failure
from tailrace_cli.output import is_terminal

# Values of TERM for terminals that interpret no escape sequences.
_SIMPLE = ("dumb", "unknown")


class Editor(Protocol):
    """Interface of a reader of messages."""

    can_edit: bool  # whether `read` accepts a text to edit
    reads_keys: bool  # whether `read` receives every key itself; otherwise the terminal collects lines

    def read(self, default: str = "") -> str:
        """Return the next message, without its quotation marks and surrounding spaces; empty for an empty line.

        Args:
            default: Text to edit.

        Raises:
            EOFError: The input ended, for example by Ctrl-D.
            KeyboardInterrupt: Ctrl-C. In FullEditor only if there is no text: otherwise Ctrl-C deletes the text.
        """


def make_editor(complete: Complete, *, keeps_history: bool) -> Editor:
    """Return the best editor for this input.

    Args:
        complete: Returns the completions of a line.
        keeps_history: Whether questions are kept in the history file.
    """
    if not is_terminal(sys.stdin):
        return LineEditor()
    is_capable = is_terminal(sys.stdout) and (os.environ.get("TERM") or _SIMPLE[0]) not in _SIMPLE
    path = history.history_file(is_wanted=keeps_history)
    if is_capable and importlib.util.find_spec("prompt_toolkit") is not None:
        from tailrace_cli.chatting.full_editor import FullEditor

        return FullEditor(complete, path)
    with contextlib.suppress(ImportError):  # not every system has readline
        return ReadlineEditor(complete, path)
    return LineEditor()


class LineEditor:
    """Reads messages line by line, without editing."""

    can_edit = False
    reads_keys = False

    def read(self, default: str = "") -> str:
        """Return the next message; see Editor. `default` is not used."""
        text = self._line(PROMPT)
        with contextlib.suppress(EOFError):
            while is_open(text):
                text = f"{text}\n{self._line(CONTINUATION)}"
        return unquoted(text)

    def _line(self, prompt: str) -> str:
        """Return the next line of the input without the line break. Raises EOFError at the end of the input."""
        if sys.stdin is None:
            raise EOFError
        if is_terminal(sys.stdin) and is_terminal(sys.stdout):
            return input(prompt)
        if is_terminal(sys.stdin) and sys.stderr is not None:
            print(prompt, end="", file=sys.stderr, flush=True)  # stdout receives only the replies
        try:
            line = sys.stdin.readline()
        except UnicodeDecodeError:
            raise Failure("The standard input is not UTF-8 text.") from None
        if not line:
            raise EOFError
        # In some locales Python represents bytes that are not UTF-8 as lone surrogates.
        return line.rstrip("\n").encode(errors="surrogateescape").decode(errors="replace")


class ReadlineEditor(LineEditor):
    """Edits single lines with Python's readline."""

    can_edit = True

    def __init__(self, complete: Complete, path: Path | None) -> None:
        """Read the history from `path`; None: it ends with the process. Raises ImportError if readline is missing."""
        import readline

        self._readline = readline
        self._complete = complete
        self._path = path
        self.reads_keys = is_terminal(sys.stdout)  # Python uses readline only if both are terminals
        readline.set_completer(self._completion)
        readline.set_completer_delims(" \t\n")
        readline.parse_and_bind("tab: complete")
        readline.set_auto_history(False)
        for entry in history.entries(path) if path is not None else ():
            readline.add_history(entry)

    def read(self, default: str = "") -> str:
        """Return the next message; see Editor."""
        if default:
            self._readline.set_startup_hook(lambda: self._readline.insert_text(default))
        try:
            text = super().read()
        finally:
            self._readline.set_startup_hook()
        if text:
            self._readline.add_history(text)
            if self._path is not None:
                with contextlib.suppress(OSError):
                    history.append(self._path, text)
        return text

    def _completion(self, word: str, state: int) -> str | None:
        line = self._readline.get_line_buffer()[: self._readline.get_endidx()]
        found = self._complete(line)
        return found[state] if state < len(found) else None
