"""Standard output and standard error of the command: failed writes, colours, tables.

Does not depend on a service.
"""

import os
import shutil
import sys
import textwrap
from collections.abc import Sequence
from typing import TextIO

from tailrace_cli.errors import OutputFailure

_STEP = 1000
_MIN_WIDTH = 20
# Control characters, which a terminal would interpret, except line ends and tabs.
_CONTROLS = dict.fromkeys({*range(0x20), *range(0x7F, 0xA0)} - {ord("\n"), ord("\t")})


def write(text: str = "", *, end: str = "\n") -> None:
    """Write `text` and `end` to standard output immediately.

    After a failure all further output is discarded, so that Python does not report it again at exit.

    Raises:
        BrokenPipeError: The program that reads the output has ended.
        OutputFailure: The output cannot be written, for example because the disk is full.
    """
    try:
        print(text, end=end, flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            raise
        raise OutputFailure(f"Cannot write to standard output: {error.strerror}.") from None


def note(text: str) -> None:
    """Write a line about the command itself to standard error, in a faint colour if standard error has colours."""
    tell(text, is_dim=True)


def tell(text: str, *, is_dim: bool = False) -> None:
    """Write a line to standard error. For a terminal it is wrapped between words. A failure to write is ignored."""
    if sys.stderr is None:  # closed; print would write to standard output
        return
    if is_terminal(sys.stderr):
        text = without_controls(text)  # an error may repeat what a server sent
    if is_terminal(sys.stderr) and "\n" not in text:
        width = max(_MIN_WIDTH, shutil.get_terminal_size().columns - 1)
        text = "\n".join(textwrap.wrap(text, width, drop_whitespace=True, break_on_hyphens=False)) or text
    try:
        print(dim(text) if is_dim else text, file=sys.stderr, flush=True)
    except OSError:
        pass


def replace_unencodable() -> None:
    """Let stdout and stderr write a question mark for each character that their encoding does not have."""
    for stream in (sys.stdout, sys.stderr):
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="replace")


def is_terminal(stream: TextIO | None) -> bool:
    """Return True if `stream` is open and a terminal."""
    return stream is not None and stream.isatty()


def has_colours(stream: TextIO | None) -> bool:
    """Return True if text for `stream` may have colours and other styles.

    NO_COLOR excludes them and FORCE_COLOR includes them. Otherwise a terminal has them, unless TERM is "dumb".
    """
    if os.environ.get("NO_COLOR"):
        return False
    if (forced := os.environ.get("FORCE_COLOR")) is not None:
        return forced not in ("", "0", "false")
    return is_terminal(stream) and os.environ.get("TERM") != "dumb"


def dim(text: str) -> str:
    """Return text for stderr in a faint colour, if stderr has colours."""
    return f"\033[2m{text}\033[0m" if has_colours(sys.stderr) else text


def without_controls(text: str) -> str:
    """Return text without the characters that a terminal would interpret."""
    return text.translate(_CONTROLS)


def table(rows: Sequence[Sequence[str]]) -> None:
    """Write rows of cells in columns, three spaces apart. The first row has the headings."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        write("   ".join(cells).rstrip())


def size(num_bytes: int) -> str:
    """Return a number of bytes in human-readable form, in decimal units as with `ls -h --si`: "98 MB"."""
    value, unit = float(num_bytes), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < _STEP:
            break
        value, unit = value / _STEP, larger
    return f"{value:.0f} {unit}" if unit in ("B", "kB", "MB") else f"{value:.1f} {unit}"
