"""Reads and writes results as JSON files. The part's process and the supervisor use them. Does not import torch."""

import json
import os
from pathlib import Path
from typing import Any

Results = dict[str, Any]


def empty() -> Results:
    """Return the state of a part that has not run: {"complete": False, "checks": {}}."""
    return {"complete": False, "checks": {}}


def read(path: Path) -> Results:
    """Return the state in a file, or an empty one if there is no file."""
    try:
        state: Results = json.loads(path.read_text())
    except FileNotFoundError:
        return empty()
    return state


def write(path: Path, value: Results) -> None:
    """Replace a file's content with `value` as JSON. A reader never sees an incomplete file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(path.name + ".new")
    new.write_text(json.dumps(value, indent=1) + "\n")
    os.replace(new, path)


def running(state: Results) -> tuple[str, Results] | None:
    """Return the name and the record of the check that has begun and not ended, or None."""
    for name, check in state["checks"].items():
        if check["status"] == "running":
            return name, check
    return None
