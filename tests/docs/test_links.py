"""Links between the documents of the repository lead to files and headings that exist. No link is fetched."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.support.processes import ROOT

DOCUMENTS = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "examples/**/*.md", "deploy/**/*.md")
    for path in ROOT.glob(pattern)
    if "node_modules" not in path.parts
)
_CODE = re.compile(r"^```.*?^```$|`[^`\n]*`", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)")


def anchors(path: Path) -> set[str]:
    """Return the anchors of a document's headings, as forges and the documentation site make them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_point_to_existing_files_and_headings(path):
    for link in _LINK.findall(_CODE.sub("", path.read_text())):
        target, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", link):
            continue
        file = (path.parent / target).resolve() if target else path
        assert file.exists(), link
        assert file.is_relative_to(ROOT), link
        assert not anchor or anchor in anchors(file), link


def test_documents_named_in_code_and_configuration_exist():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    # The changelog names documents that have moved, the tests of the prose checker invent some.
    files = [ROOT / name for name in listed if name not in ("CHANGELOG.md", "tests/test_prose.py", "tests/prose.py")]
    missing = [
        f"{file.relative_to(ROOT)}: {name}"
        for file in files
        if file.suffix in (".py", ".toml", ".yml", ".yaml", ".sh", ".md", "") and file.is_file()
        for name in re.findall(r"(?<![\w/.{])((?:\w+/)+[\w-]+\.md|[A-Z]{4,}\.md)\b", file.read_text(encoding="utf-8"))
        if not any((folder / name).exists() for folder in (ROOT, file.parent, ROOT / "docs"))
    ]
    assert not missing, "\n".join(missing)


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text()
    pages = [str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")]
    missing = [page for page in pages if f" {page}\n" not in navigation]
    assert not missing
