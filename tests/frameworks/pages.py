"""Reads a page of docs/frameworks: the commands in their order, the files to change, and the output that a reader sees."""

import re
from dataclasses import dataclass
from pathlib import Path

from tests.support.processes import ROOT

PAGES = ROOT / "docs" / "frameworks"
EXAMPLES = ROOT / "examples" / "frameworks"
_FENCED = re.compile(
    r"(?:^`(?P<file>[^`\n]+)`[^\n]*:\n\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
# Commands that run until the reader stops them.
_SERVING = re.compile(r"^(npx tailrace dev|npm run dev|npx wrangler dev)", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block.

    language: `sh` for commands, nothing for output, else a part of a file. line: the line of its fence, counted from 1.
    file: the path before the block, where a sentence that ends in a colon begins with it.
    """

    page: str
    line: int
    language: str
    text: str
    file: str | None

    def __str__(self) -> str:
        return f"docs/frameworks/{self.page}.md:{self.line}"

    @property
    def serves(self) -> bool:
        """Return whether the command runs until the reader stops it."""
        return self.language == "sh" and _SERVING.search(self.text) is not None


def names() -> list[str]:
    """Return the names of the pages, without the index."""
    return sorted(path.stem for path in PAGES.glob("*.md") if path.stem != "index")


def blocks(page: str) -> list[Block]:
    """Return the blocks of a page, in their order."""
    text = (PAGES / f"{page}.md").read_text(encoding="utf-8")
    return [
        Block(
            page,
            text.count("\n", 0, found.start("language")) + 1,
            found["language"],
            found["text"],
            found["file"],
        )
        for found in _FENCED.finditer(text)
    ]


def plain(text: str) -> str:
    """Return a program's output without colours, and with single spaces."""
    return re.sub(r"[ \t]+", " ", _ESCAPES.sub("", text).replace("\r", ""))


def missing_line(sample: str, output: str) -> str | None:
    """Return the first line of `sample` that `output` lacks, or None. The lines must come in the same order.

    "…" in the sample stands for any text, and a port for any port.
    """
    rest = plain(output)
    for line in plain(sample).splitlines():
        if not line.strip(" …"):
            continue
        pattern = re.sub(r"(?<=:)\d{4,5}\b", r"\\d+", re.escape(line.strip()).replace("…", ".*?"))
        found = re.search(pattern, rest)
        if found is None:
            return line
        rest = rest[found.end() :]
    return None


def contains(file: Path, part: str) -> bool:
    """Return whether a file contains the lines of `part` as they are, apart from their indentation."""
    whole, wanted = ([line.strip() for line in text.splitlines() if line.strip()] for text in (file.read_text(), part))
    return any(whole[start : start + len(wanted)] == wanted for start in range(len(whole)))
