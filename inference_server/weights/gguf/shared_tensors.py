"""Shares embeddings and packed layers between the engines of a process that serve the same file."""

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakValueDictionary

_lock = threading.Lock()
_in_use: WeakValueDictionary[str, Any] = WeakValueDictionary()
_Value = TypeVar("_Value")


def state_of(file: Path) -> str:
    """Return a text that changes with the file's path, size and modification time."""
    status = file.stat()
    return f"{file.resolve()} {status.st_size} {status.st_mtime_ns}"


def shared(state: str, description: Any, make: Callable[[], _Value]) -> _Value:
    """Return the result of `make`, or an earlier result with the same state and description that is still in use.

    Args:
        state: Result of `state_of` for the file on whose content the result of `make` depends.
        description: All other inputs of the result, as JSON values.
        make: Computes the result, an object that callers do not change.
    """
    key = _key(state, description)
    with _lock:
        value: _Value | None = _in_use.get(key)
    if value is None:
        value = make()  # without the lock: threads make different values at the same time
        with _lock:
            value = _in_use.setdefault(key, value)
    return value


def in_use(state: str, description: Any) -> Any:
    """Return the value of an earlier call of `shared` with these arguments; None if it is not in use."""
    with _lock:
        return _in_use.get(_key(state, description))


def _key(state: str, description: Any) -> str:
    return state + json.dumps(description)
