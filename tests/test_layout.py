"""No folder of Python code has too many modules, and no file too many lines. CONTRIBUTING.md has the limits to aim at."""

from collections import Counter
from pathlib import Path

import pytest

from tests.support.processes import ROOT

FOLDERS = (
    "inference_server",
    "http_bridge",
    "tailrace_shared",
    "tailrace",
    "tailrace_cli",
    "tests",
    "benchmarks",
    "examples",
)
MAX_MODULES = 16  # of one folder, besides __init__.py and packages
MAX_LINES = 400


def _sources(folder: str) -> list[Path]:
    """Return the Python files below a folder, without generated ones and those of installed Node packages."""
    found = (ROOT / folder).rglob("*.py")
    return [
        path for path in found if "node_modules" not in path.parts and not path.stem.endswith(("_pb2", "_pb2_grpc"))
    ]


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_folder_has_more_than_16_modules(folder: str) -> None:
    modules = Counter(path.parent.relative_to(ROOT) for path in _sources(folder) if path.name != "__init__.py")
    assert modules, f"{folder} has no Python files"
    large = [f"{name}: {number}" for name, number in sorted(modules.items()) if number > MAX_MODULES]
    assert not large, f"divide these folders into packages: {', '.join(large)}"


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_file_has_more_than_400_lines(folder: str) -> None:
    lines = {path.relative_to(ROOT): len(path.read_text().splitlines()) for path in _sources(folder)}
    long = [f"{path}: {number}" for path, number in sorted(lines.items()) if number > MAX_LINES]
    assert not long, f"divide these files: {', '.join(long)}"
