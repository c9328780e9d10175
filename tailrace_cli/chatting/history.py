"""The file with the questions of earlier chats, for the arrow keys."""

import os
import stat
from datetime import datetime
from pathlib import Path

from tailrace_cli.environment import variable
from tailrace_cli.output import note

_VARIABLE = "TAILRACE_CHAT_HISTORY"
_OFF = ("off", "none", "0")
# Size in bytes above which the file is cut to its newest entries: at most half of this size.
_MAX_BYTES = 4 * 2**20


def history_file(*, is_wanted: bool) -> Path | None:
    """Return the file of the history, which then exists and which only this user can read; None: there is no history.

    Args:
        is_wanted: False if the command line switches the history off.
    """
    chosen = variable(_VARIABLE)
    if not is_wanted or chosen.lower() in _OFF:
        return None
    try:
        path = Path(chosen).expanduser() if chosen else _state_folder() / "tailrace" / "chat-history"
    except RuntimeError:
        note(f"(No history is kept: there is no home directory for it. {_VARIABLE} names a file, or off.)")
        return None
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # The mode applies to a new file only. An existing file may be readable by other users.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):  # /dev/null, which must keep its mode
            return None
        if mode & 0o077:
            path.chmod(0o600)
        _shorten(path)
    except OSError as error:
        note(f"(No history is kept: {path} cannot be used: {error.strerror}. {_VARIABLE} names another file, or off.)")
        return None
    return path


def _state_folder() -> Path:
    return Path(variable("XDG_STATE_HOME") or Path.home() / ".local" / "state")


def _shorten(path: Path) -> None:
    """Remove the oldest entries of a file that has become too large."""
    if path.stat().st_size <= _MAX_BYTES:
        return
    data = path.read_bytes()[-_MAX_BYTES // 2 :]
    # An entry begins after an empty line in prompt_toolkit's format, else after a line end.
    _, separator, rest = data.partition(b"\n\n")
    path.write_bytes(rest if separator else data.partition(b"\n")[2])


def entries(path: Path) -> list[str]:
    """Return the questions of a history file, oldest first. The file has the format of prompt_toolkit's FileHistory."""
    found: list[list[str]] = [[]]
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        if line.startswith("+"):
            found[-1].append(line[1:])
        elif found[-1]:
            found.append([])
    return ["\n".join(lines) for lines in found if lines]


def append(path: Path, question: str) -> None:
    """Append a question to a history file."""
    lines = "".join(f"+{line}\n" for line in question.split("\n"))
    with path.open("a", encoding="utf-8", errors="replace") as file:
        file.write(f"\n# {datetime.now()}\n{lines}")
