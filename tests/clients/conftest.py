"""A running stack for the tests of this folder, with replies of full length, and its address in the clients' form."""

import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from inference_server.settings.models import DEFAULT_CATALOG
from tests.clients.node_programs import install
from tests.e2e.stack import OTHER_SERVER, Stack
from tests.support.processes import free_address

ACCOUNT = "0123456789abcdef0123456789abcdef"
# Numbers of generated requests, by model. They show how thorough the tests were.
generated: Counter[str] = Counter()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give each generated test an id of its own. Of several tests with one id, pytest-xdist would run only the first."""
    for item in items:
        module = item.getparent(pytest.Module)
        if module is not None and not item.nodeid.endswith(item.name):
            item._id = module.id.child(item.name)
    ids = [item.nodeid for item in items]
    assert len(set(ids)) == len(ids)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Send the numbers to the process that prints them, if the tests run in several processes."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["generated"] = dict(generated)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    generated.update(getattr(node, "workeroutput", {}).get("generated", {}))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for model, count in generated.items():
        terminalreporter.write_line(f"{count} generated requests over {model}")


def catalog_text() -> str:
    if other := os.environ.get("TAILRACE_TEST_CATALOG"):
        return Path(other).read_text()
    # All entries in one precision share an engine.
    return re.sub(r'^precision = ".*"', 'precision = "float16"', DEFAULT_CATALOG.read_text(), flags=re.MULTILINE)


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    stack = Stack(tmp_path_factory.mktemp("stack"), catalog_text(), server=OTHER_SERVER)
    try:
        stack.start()
        yield stack
    finally:
        stack.stop()


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the Node programs, with their packages."""
    return install(Path(__file__).parent / "node", tmp_path_factory.mktemp("node") / "programs")


@pytest.fixture(scope="session")
def api(stack: Stack) -> str:
    """Return the base URL that replaces https://api.cloudflare.com/client/v4."""
    return f"http://{stack.http_address}/client/v4"


@pytest.fixture(scope="session")
def commenting_bridge(stack: Stack) -> str:
    """Start a bridge that sends a comment in every pause, and return its URL: each client has to skip comments."""
    address = free_address()
    settings = {"TAILRACE_HTTP_ADDRESS": address, "TAILRACE_STREAM_COMMENT_SECONDS": "0.002"}
    stack.spawn("http_bridge", name="commenting bridge", **settings)
    stack.wait_until_answered(f"http://{address}/readyz")
    return f"http://{address}"
