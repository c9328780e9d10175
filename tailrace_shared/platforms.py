"""Checks the operating system: the inference server does not run on Windows itself."""

import sys

WINDOWS_SENTENCE = "The inference server does not run on Windows itself: use WSL 2 or Docker Desktop."


def is_windows() -> bool:
    """Return True on Windows, outside WSL."""
    return sys.platform == "win32"
