"""Sets what the terminal does with characters that are typed between two messages. The next message receives them."""

import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tailrace_cli.output import is_terminal


@contextmanager
def kept_keys() -> Iterator[None]:
    """Let the next message receive keys as they were typed, including those pressed before its editor reads.

    A terminal that collects lines would turn Ctrl-D into a zero byte and Enter into Ctrl-J, which mean something else to an
    editor. Ctrl-C keeps its effect. Without a terminal nothing changes.
    """
    with _without(local=("ICANON", "IEXTEN"), input_=("ICRNL", "INLCR", "IGNCR")):
        yield


@contextmanager
def hidden_typing() -> Iterator[None]:
    """Switch the terminal's echo off within the block. Ctrl-C keeps its effect. Without a terminal nothing changes."""
    with _without(local=("ECHO",)):
        yield


def has_waiting_keys() -> bool:
    """Return True if keys were pressed in the terminal that no editor has read yet; False without a terminal."""
    try:
        return is_terminal(sys.stdin) and bool(select.select([sys.stdin], [], [], 0)[0])
    except (OSError, ValueError):  # Windows, where only sockets can be selected
        return False


@contextmanager
def _without(*, local: tuple[str, ...], input_: tuple[str, ...] = ()) -> Iterator[None]:
    """Switch modes of the terminal off within the block.

    Args:
        local: Names of the local modes.
        input_: Names of the input modes.
    """
    try:
        import termios
    except ImportError:  # Windows
        yield
        return
    if not is_terminal(sys.stdin):
        yield
        return
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    changed = [*before[:6], [*before[6]]]
    for place, names in ((0, input_), (3, local)):
        for name in names:
            changed[place] &= ~getattr(termios, name)
    if "ICANON" in local:
        # One byte is enough for a read. On some systems these places contain the characters for the end of a line.
        changed[6][termios.VMIN], changed[6][termios.VTIME] = 1, 0
    termios.tcsetattr(descriptor, termios.TCSANOW, changed)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSANOW, before)
