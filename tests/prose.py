"""Checks the house rules for prose of CONTRIBUTING.md in docstrings, comments, messages and documents.

`python -m tests.prose [paths…]` prints every violation and a count per rule. Does not import the code that it reads.
"""

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
DOCUMENTED = ("inference_server", "http_bridge", "tailrace", "tailrace_shared", "tailrace_cli")
PYTHON = (*DOCUMENTED, "benchmarks", "examples", "tests")  # without the generated stubs
TEXT = {".proto", ".html", ".js", ".mjs", ".css", ".toml", ".yaml", ".yml", ".sh"}
_Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
MAX_WORDS_DOCUMENT = 30
MAX_WORDS_DOCSTRING = 35

_BANNED = """anew|whoever|nobody|somebody|someone|shall|thereof|is told|are told|was told|to be had|stands in the|
in company|at hand|lest|wherein|tells|gives up|given up|taken over|sent back|stand-in|whose sake|waiting room|
who comes next""".replace("\n", "")
# A phrase may continue on the next line, behind a comment's sign.
_BANNED_PATTERN = re.compile(r"\b(?:" + _BANNED.replace(" ", r"(?:[\s#>*]|//)+") + r")\b", re.IGNORECASE)
_NO_FIRST_WORD = {"Of", "What", "Whether", "Who", "Whose", "All", "One", "Each", "Nobody", "How"}
_BACKTICKS = re.compile(r"(`+)[^`]+\1")
# What starts a sentence of its own: a list item, or an argument's line below "Args:".
_ITEM = re.compile(r"\s*(?:[-*+] |\d+\. |\*{0,2}\w+(?: \([^)]*\))?:(?:\s|$))")
_SENTENCE_END = re.compile(r"""(?<=[.!?])(?<!e\.g\.)(?<!i\.e\.)(?<!vs\.)["')*_]*\s+""")


class Violation(NamedTuple):
    """A line of a file that breaks a rule: "banned", "first word", "long" or "undocumented"."""

    path: str
    line: int
    rule: str
    text: str


class _Class(NamedTuple):
    bases: list[str]
    documented: set[str]


def tracked(root: Path) -> list[str]:
    """Return the paths of the files that git tracks, or of all files where `root` is not a checkout."""
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=root, capture_output=True, text=True)
    if listed.returncode == 0:
        return [path for path in listed.stdout.split("\n") if path and (root / path).is_file()]
    return [str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()]


def violations(root: Path = ROOT, below: tuple[str, ...] = ()) -> Iterator[Violation]:
    """Yield every violation in the files of `root`, or in those with a path that starts with one of `below`."""
    paths = tracked(root)
    bases = _documented_methods(root, paths)
    for path in sorted(paths):
        if below and not path.startswith(below):
            continue
        source, suffix = root / path, Path(path).suffix
        if suffix == ".py" and path.startswith(PYTHON) and "_pb2" not in source.name:
            yield from _of_python(path, source.read_text(), bases)
        elif suffix == ".md":
            yield from _of_document(path, source.read_text())
        elif suffix in TEXT or source.name in ("Makefile", "Dockerfile"):
            yield from _banned(path, 1, source.read_text())


def _banned(path: str, line: int, text: str) -> Iterator[Violation]:
    text = _BACKTICKS.sub(lambda code: re.sub(r"[^\n]", "x", code[0]), text)
    for found in _BANNED_PATTERN.finditer(text):
        start = text.count("\n", 0, found.start())
        yield Violation(path, line + start, "banned", f'"{" ".join(found[0].split())}" in: {text.splitlines()[start]}')


def _sentences(line: int, lines: list[str]) -> Iterator[tuple[int, str]]:
    """Yield the line and text of each sentence: blank lines and list items separate, as sentence ends do."""
    block: list[str] = []
    start = line
    for number, text in enumerate([*lines, ""], line):
        if block and (not text.strip() or _ITEM.match(text)):
            joined = "\n".join(block)
            for sentence in _SENTENCE_END.split(joined):
                yield start + joined.count("\n", 0, joined.find(sentence)), " ".join(sentence.split())
            block = []
        if text.strip():
            start = start if block else number
            block.append(text)


def _long(path: str, line: int, text: str, most: int) -> Iterator[Violation]:
    plain = _BACKTICKS.sub(lambda code: "x" + "\n" * code[0].count("\n"), text)
    for start, sentence in _sentences(line, plain.split("\n")):
        words = len(re.findall(r"\w[^\s]*", sentence))
        if words > most:
            yield Violation(path, start, "long", f"{words} words: {sentence}")


def _of_document(path: str, text: str) -> Iterator[Violation]:
    def blank(found: re.Match[str]) -> str:
        return "\n" * found[0].count("\n")

    text = re.sub(r"^ *(```+|~~~+).*?^ *\1|<!--.*?-->", blank, text, flags=re.DOTALL | re.MULTILINE)
    yield from _banned(path, 1, text)
    text = re.sub(r"!\[[^\]]*\]\([^)]*\)", blank, text)
    text = re.sub(r"^(\s*[-*] )\[[^\]]*\]\([^)]*\)", r"\1", text, flags=re.MULTILINE)
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"^[ >]*(?:\||#|=+$|-+$).*$", "", text, flags=re.MULTILINE)
    yield from _long(path, 1, text, MAX_WORDS_DOCUMENT)


def _of_python(path: str, source: str, bases: dict[str, _Class]) -> Iterator[Violation]:
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | _Definition):
            yield from _of_docstring(path, node)
        elif isinstance(node, ast.Call) and _is_message(node):
            given = [*node.args, *(each.value for each in node.keywords)]
            for text in (each for argument in given for each in _literals(argument)):
                yield from _banned(path, node.lineno, text)
    comments = [""] * (source.count("\n") + 1)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            comments[token.start[0] - 1] = token.string
    yield from _banned(path, 1, "\n".join(comments))
    if path.startswith(DOCUMENTED) and not re.search(r"(?:^|/)_(?!_)", path):
        yield from _undocumented(path, tree, None, bases)


def _of_docstring(path: str, node: ast.Module | _Definition) -> Iterator[Violation]:
    text = ast.get_docstring(node, clean=False)
    if not text:
        return
    line = node.body[0].lineno
    if text.split()[0].strip(",.:") in _NO_FIRST_WORD:
        yield Violation(path, line, "first word", text.strip().splitlines()[0])
    yield from _banned(path, line, text)
    yield from _long(path, line, text, MAX_WORDS_DOCSTRING)


def _is_message(call: ast.Call) -> bool:
    """Return True for print(), a logger's methods, exceptions, and calls with a help text or description."""
    owner, _, name = ast.unparse(call.func).rpartition(".")
    described = any(each.arg in ("help", "description", "summary") for each in call.keywords)
    return name == "print" or owner in ("logger", "_logger", "_log", "errors") or name.endswith("Error") or described


def _literals(node: ast.expr) -> Iterator[str]:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.JoinedStr):
        yield "".join(part.value if isinstance(part, ast.Constant) else "x" for part in node.values)


def _documented_methods(root: Path, paths: list[str]) -> dict[str, _Class]:
    """Return every class by its bare name, generated servicers included: an override need not repeat a docstring."""
    classes = {}
    for path in (path for path in paths if path.endswith(".py") and path.startswith(DOCUMENTED)):
        for node in ast.walk(ast.parse((root / path).read_text())):
            if isinstance(node, ast.ClassDef):
                methods = [each for each in node.body if isinstance(each, _Definition)]
                bases = [ast.unparse(base).split("[")[0].rpartition(".")[2] for base in node.bases]
                classes[node.name] = _Class(bases, {each.name for each in methods if ast.get_docstring(each)})
    return classes


def _inherits(method: str, of: str, classes: dict[str, _Class]) -> bool:
    ancestors = [of]
    for name in ancestors:
        ancestors += [base for base in classes[name].bases if base in classes and base not in ancestors]
    return any(method in classes[name].documented for name in ancestors[1:])


def _undocumented(path: str, owner: ast.AST, of: str | None, classes: dict[str, _Class]) -> Iterator[Violation]:
    for node in ast.iter_child_nodes(owner):
        if not isinstance(node, _Definition) or node.name.startswith("_"):
            continue
        decorators = {ast.unparse(each).rpartition(".")[2] for each in node.decorator_list}
        excused = decorators & {"overload", "setter"} or (of is not None and _inherits(node.name, of, classes))
        if not excused and not ast.get_docstring(node):
            yield Violation(path, node.lineno, "undocumented", f"{of}.{node.name}" if of else node.name)
        if isinstance(node, ast.ClassDef):
            yield from _undocumented(path, node, node.name, classes)


def main(root: Path, below: tuple[str, ...]) -> int:
    """Print the violations and a count per rule. Return the process's exit status."""
    found = list(violations(root, below))
    for violation in found:
        print("{}:{}: {}: {}".format(*violation))
    counts = Counter(violation.rule for violation in found)
    print(", ".join(f"{rule}: {counts[rule]}" for rule in ("banned", "first word", "long", "undocumented")))
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(ROOT, tuple(sys.argv[1:])))
