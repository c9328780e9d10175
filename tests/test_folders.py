"""No folder is too large to read: CONTRIBUTING.md states the limit of modules."""

from collections import Counter
from pathlib import PurePosixPath

from tests.prose import tracked
from tests.support.processes import ROOT

MOST_MODULES = 16
MODULES = {".py", ".js", ".jsx", ".mjs", ".ts"}


def test_no_folder_has_more_than_16_modules_beside_its_init():
    paths = [PurePosixPath(path) for path in tracked(ROOT)]
    counts = Counter(str(path.parent) for path in paths if path.suffix in MODULES and path.stem != "__init__")
    assert {folder: count for folder, count in counts.items() if count > MOST_MODULES} == {}
