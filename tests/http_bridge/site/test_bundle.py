"""The bundled pages belong to their sources, are small, and have the licences of what they contain."""

import hashlib
import json

from tests.support.processes import ROOT

SOURCES = ROOT / "playground"
SITE = ROOT / "http_bridge" / "site" / "playground"
LIMIT = 150_000


def test_the_bundles_are_those_of_the_sources():
    names = [str(path.relative_to(SOURCES)) for path in (SOURCES / "src").rglob("*") if path.is_file()]
    digest = hashlib.sha256()
    # playground/build.mjs computes the same.
    for name in ("package.json", "build.mjs", *sorted(names)):
        digest.update(f"{name}\n".encode() + (SOURCES / name).read_bytes())
    for bundle in ("main.js", "docs.js"):
        begin = (SITE / bundle).read_text()[:200]
        assert f"Sources {digest.hexdigest()[:16]}\n" in begin, "run `make playground` and commit what it writes"


def test_the_pages_are_small():
    assert sum(path.stat().st_size for path in SITE.iterdir() if path.suffix != ".txt") < LIMIT


def test_each_bundled_library_has_its_licence():
    packages = json.loads((SOURCES / "package.json").read_text())["devDependencies"]
    licenses = (SITE / "licenses.txt").read_text()
    for name in packages.keys() - {"esbuild", "typescript"}:
        assert f"{name} {packages[name]} (" in licenses
