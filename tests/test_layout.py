"""No folder has too many modules, and no file of Python too many lines. CONTRIBUTING.md has the limits to aim at."""

from collections import Counter
from pathlib import PurePosixPath

from tests.prose import tracked
from tests.support.processes import ROOT

MODULES = {".py", ".js", ".jsx", ".mjs", ".ts"}
MAX_MODULES = 16  # of one folder, besides __init__.py and packages
MAX_LINES = 400


def test_no_folder_has_more_than_16_modules():
    paths = [PurePosixPath(path) for path in tracked(ROOT)]
    modules = Counter(str(path.parent) for path in paths if path.suffix in MODULES and path.stem != "__init__")
    large = [f"{folder}: {number}" for folder, number in sorted(modules.items()) if number > MAX_MODULES]
    assert not large, f"divide these folders: {', '.join(large)}"


def test_no_file_has_more_than_400_lines():
    paths = [path for path in tracked(ROOT) if path.endswith(".py") and "_pb2" not in path]
    lines = {path: len((ROOT / path).read_text().splitlines()) for path in paths}
    long = [f"{path}: {number}" for path, number in sorted(lines.items()) if number > MAX_LINES]
    assert not long, f"divide these files: {', '.join(long)}"
