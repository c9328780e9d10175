"""Hides typed characters while a reply is printed. The next message receives them."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tailrace_cli.output import is_terminal


@contextmanager
def hidden_typing() -> Iterator[None]:
    """Switch the terminal's echo off within the block. Ctrl-C keeps its effect. Without a terminal nothing changes."""
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
    changed = [*before]
    changed[3] &= ~termios.ECHO
    termios.tcsetattr(descriptor, termios.TCSANOW, changed)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSANOW, before)
