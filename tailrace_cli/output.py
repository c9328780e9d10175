"""Standard output of the command: writes text and converts a failed write to an error message.

Does not depend on a service.
"""

import os
import sys
from collections.abc import Sequence

from tailrace_cli.errors import Failure

_STEP = 1000


def write(text: str = "", *, end: str = "\n") -> None:
    """Write `text` and `end` to standard output immediately.

    After a failure all further output is discarded, so that Python does not report it again at exit.

    Raises:
        BrokenPipeError: The program that reads the output has ended.
        Failure: The output cannot be written, for example because the disk is full.
    """
    try:
        print(text, end=end, flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            raise
        raise Failure(f"Cannot write to standard output: {error.strerror}.") from None


def dim(text: str) -> str:
    """Return text for stderr in a faint colour, unless stderr is not a terminal or NO_COLOR is set."""
    return f"\033[2m{text}\033[0m" if sys.stderr.isatty() and not os.environ.get("NO_COLOR") else text


def table(rows: Sequence[Sequence[str]]) -> None:
    """Write rows of cells in columns, three spaces apart. The first row has the headings."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        write("   ".join(cells).rstrip())


def size(num_bytes: int) -> str:
    """Return a number of bytes in human-readable form, in decimal units like `ls -h --si`: "98 MB"."""
    value, unit = float(num_bytes), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < _STEP:
            break
        value, unit = value / _STEP, larger
    return f"{value:.0f} {unit}" if unit in ("B", "kB", "MB") else f"{value:.1f} {unit}"
