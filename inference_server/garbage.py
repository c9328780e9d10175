"""Pauses Python's garbage collection during imports.

Imports create about a million objects, which live until the process ends. The collector would examine them again and
again, which takes a sixth of the time of all imports.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


def pause() -> None:
    """Stop collecting until `resume`."""
    gc.disable()


def resume() -> None:
    """Collect again after `pause`, but never examine the objects that exist now. Does nothing without a pause."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()


@contextmanager
def paused() -> Iterator[None]:
    """Stop collecting during the `with` block. Collection that was already stopped stays stopped afterwards."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def collect() -> None:
    """Free unused objects that refer to each other. Objects that existed at `resume` are not examined."""
    gc.collect()
