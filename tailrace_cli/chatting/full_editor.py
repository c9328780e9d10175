"""The editor for terminals, with prompt_toolkit: several lines, history with search, completion, pasted text."""

import contextlib
from collections.abc import Iterable
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.history import FileHistory, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output import create_output
from prompt_toolkit.output.vt100 import Vt100_Output
from prompt_toolkit.shortcuts import CompleteStyle

from tailrace_cli.chatting.message_text import CONTINUATION, PROMPT, Complete, is_open, unquoted

# Longest question that the history keeps, in characters.
_MAX_KEPT = 100_000


class FullEditor:
    """Edits messages of several lines; see Editor."""

    can_edit = True
    reads_keys = True

    def __init__(self, complete: Complete, path: Path | None) -> None:
        """Prepare the editor. `path`: the history file; None: the history ends with the process."""
        output = create_output()
        if isinstance(output, Vt100_Output):
            # Only menus and toolbars below the text, which this editor does not have, need the cursor's position. Not
            # every terminal reports it, and prompt_toolkit warns about those.
            output.enable_cpr = False
        self._session: PromptSession[str] = PromptSession(
            PROMPT,
            multiline=True,
            prompt_continuation=lambda width, number, num_wraps: "" if num_wraps else CONTINUATION,
            history=InMemoryHistory() if path is None else _History(str(path)),
            completer=_Completer(complete),
            complete_while_typing=False,
            complete_style=CompleteStyle.READLINE_LIKE,
            enable_open_in_editor=True,
            tempfile_suffix=".md",
            key_bindings=_keys(),
            output=output,
        )

    def read(self, default: str = "") -> str:
        """Return the next message; see Editor."""
        return unquoted(self._session.prompt(default=default))


class _History(FileHistory):
    """A history file that leaves long questions out, and that ignores errors when it is written."""

    def store_string(self, string: str) -> None:
        """Append a question."""
        if len(string) <= _MAX_KEPT:
            with contextlib.suppress(OSError):
                super().store_string(string)


class _Completer(Completer):
    def __init__(self, complete: Complete) -> None:
        self._complete = complete

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        """Yield the words that may replace the last word of the line."""
        line = document.text_before_cursor
        word = line.rpartition(" ")[2]
        for each in self._complete(line) if "\n" not in line else ():
            yield Completion(each, start_position=-len(word))


def _keys() -> KeyBindings:
    keys = KeyBindings()

    @keys.add("enter")
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if is_open(buffer.text):
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    @keys.add("c-j")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    @keys.add("c-c")
    def _(event: KeyPressEvent) -> None:
        if event.current_buffer.text:
            event.current_buffer.reset()
        else:
            event.app.exit(exception=KeyboardInterrupt(), style="class:aborting")

    return keys
