"""Reads the commands of README.md and docs/getting-started.md: code blocks, and commands inside of sentences and tables."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from tests.support.processes import ROOT

PAGES = ("README.md", "docs/getting-started.md")
# Commands that other tests execute: what they begin with, and the file of the test.
ELSEWHERE = {
    r"make run( +#.*)?$": "tests/e2e/test_local_stack.py",
    r"make run TORCH_INDEX_URL=https://\S+$": "tests/docs/test_install.py",
    r"make test( +#.*)?$": "tests/docs/test_install.py",
    r"docker compose up --build --wait$": "tests/compose/test_compose.py",
    r"make wheel$": "tests/clients/test_wheel.py",
    r"make image$": "tests/compose/test_image.py",
    r"docker run --rm -p 127\.0\.0\.1:8787:8787 tailrace$": "tests/compose/test_image.py",
    r"(make npm-package|npm install --save-dev \S+\.tgz|npx tailrace dev)( +#.*)?$": "tests/npm/test_first_answer.py",
    r"pip install -c constraints\.txt '\.\[all\]'$": "tests/docs/test_install.py",
    r"tailrace serve$": "tests/e2e/test_local_stack.py",
    r"\.venv/bin/tailrace serve [\w.-]+/[\w.-]+$": "tests/e2e/test_one_step.py",
    r"tailrace doctor$": "tests/e2e/test_command.py",
    r"(CLOUDFLARE_\w+=\S+ +)*npx wrangler@3 dev$": "tests/clients/test_workers.py",
    r"HF_TOKEN=\S+ TAILRACE_CATALOG=inference_server/catalogs/llama-2\.toml make run$": "tests/docs/test_install.py",
}
_FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`((?:make|docker|pip|npx|curl|git|tailrace|rm) [^`\n]+)`")
_PROGRAMS = ("sh", "python", "ts", "js")


@dataclass(frozen=True)
class Block:
    """A code block of a page. `line`: the line of its fence, counted from 1."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def programs() -> Iterator[Block]:
    """Yield the blocks that a reader would run. A block without a language is output."""
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        for found in _FENCED.finditer(text):
            if found[1] in _PROGRAMS:
                yield Block(page, text.count("\n", 0, found.start()) + 1, found[1], found[2])


def inline_commands() -> Iterator[tuple[str, str]]:
    """Yield page and command of the commands outside of blocks."""
    for page in PAGES:
        text = _FENCED.sub("", (ROOT / page).read_text(encoding="utf-8"))
        for command in _INLINE.findall(text):
            yield page, command


def lines(block: Block) -> list[str]:
    """Return the block's commands, each with its continuation lines."""
    return [line for line in re.split(r"(?<!\\)\n", block.text) if line.strip()]


def covered_by(command: str) -> str | None:
    """Return the file of the test that executes the command, or None."""
    joined = " ".join(command.replace("\\\n", " ").split(" ")).strip()
    return next((test for pattern, test in ELSEWHERE.items() if re.match(pattern, joined)), None)


def script(block: Block) -> str:
    """Return the block without the commands that other tests execute; empty if nothing is left to execute."""
    if block.language != "sh":
        return block.text
    return "\n".join(line for line in lines(block) if not covered_by(line))
