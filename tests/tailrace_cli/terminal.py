"""Runs the `tailrace` command in a pseudo-terminal, as a person uses it."""

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Mapping

from tests.support.processes import ROOT

CTRL_C, CTRL_D, ALT_ENTER, UP = "\x03", "\x04", "\x1b\r", "\x1b[A"
_TO_THE_RIGHT = re.compile(r"\x08?\x1b\[(\d*)C")
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b\][^\a]*\a")


def pasted(text: str) -> str:
    """Return what a terminal sends for a pasted text."""
    return f"\x1b[200~{text}\x1b[201~"


def _take_terminal() -> None:
    """Let Ctrl-C reach this process as in a shell: by a controlling terminal, and not ignored as after `&` in a script."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Terminal:
    """The command in a terminal. Use it as a context manager: the end of the block closes the terminal."""

    def __init__(self, *arguments: str, environment: Mapping[str, str], rows: int = 24, columns: int = 80) -> None:
        self._file, other = pty.openpty()
        self.resize(rows, columns)
        more = {"TERM": "xterm-256color"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tailrace_cli", *arguments],
            stdin=other,
            stdout=other,
            stderr=other,
            cwd=ROOT,
            env={**more, **environment},
            start_new_session=True,
            preexec_fn=_take_terminal,
        )
        os.close(other)
        self._raw = b""
        self._seen = 0

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._file)

    @property
    def text(self) -> str:
        """Everything that the command has written, without escape sequences. Moves to the right are spaces."""
        text = _TO_THE_RIGHT.sub(lambda found: " " * int(found[1] or 1), self.raw)
        return _ESCAPES.sub("", text)

    @property
    def raw(self) -> str:
        """Everything that the command has written."""
        return self._raw.decode(errors="replace")

    def send(self, text: str) -> None:
        os.write(self._file, text.encode())

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self._file, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def until(self, pattern: str, *, seconds: float = 40.0) -> None:
        """Wait until the regular expression matches new output. Raises AssertionError with all output otherwise."""
        deadline = time.monotonic() + seconds
        while (found := re.compile(pattern).search(self.text, self._seen)) is None:
            assert time.monotonic() < deadline and self._read(), f"no {pattern!r} in:\n{self.text[self._seen :]}"
        self._seen = found.end()

    def exit_code(self, *, seconds: float = 20.0) -> int:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self._read():
            pass
        return self._process.wait(timeout=seconds)

    def _read(self) -> bool:
        """Read what the command has written, for at most 0.2 s. Returns False at the end."""
        if not select.select([self._file], [], [], 0.2)[0]:
            return True
        try:
            data = os.read(self._file, 65536)
        except OSError:  # the command has ended
            return False
        self._raw += data
        return bool(data)
