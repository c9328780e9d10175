"""Server and bridge as processes over a tiny model, so that any slowness is theirs and not the model's."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from tests.e2e.stack import Stack
from tests.support.servers import write_catalog

StartStack = Callable[..., AbstractContextManager[Stack]]
_reported: list[str] = []


@pytest.fixture(scope="session")
def start_stack(
    tiny_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., AbstractContextManager[Stack]]:
    """Return a context manager that starts server and bridge with eight slots, and stops them at its end.

    Its arguments: `context` and `sequence` are the model's limits in tokens, together at most 4096. `server` and `bridge`
    are settings of one of them, by environment variable. `server_module` is started instead of the server.
    """

    @contextmanager
    def start(
        *,
        context: int = 512,
        sequence: int = 1800,
        server: dict[str, str] | None = None,
        server_module: str = "inference_server",
        bridge: dict[str, str] | None = None,
    ) -> Iterator[Stack]:
        folder = tmp_path_factory.mktemp("stack")
        catalog = write_catalog(folder / "tiny.toml", tiny_model("llama-2"), context=context, sequence=sequence)
        stack = Stack(folder, catalog.read_text())
        try:
            stack.spawn(server_module, name="inference_server", **(server or {}))
            stack.spawn("http_bridge", **(bridge or {}))
            stack.wait_until_answered(f"http://{stack.http_address}/readyz")
            yield stack
        finally:
            stack.stop()

    return start


@pytest.fixture(scope="session")
def report() -> Callable[[str], None]:
    """Return a function that prints a figure below the tests' results."""
    return _reported.append


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for line in _reported:
        terminalreporter.write_line(line)
