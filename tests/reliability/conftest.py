"""Server and bridge as processes over a tiny model: what is slow there is theirs, and nothing of it is the model's."""

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
    """A function that starts server and bridge with eight slots and the settings given; they are stopped at its end.

    context, sequence: the model's limits in tokens; together at most 4096. server, bridge: settings of one of them, by
    their environment variables. server_module: what to start in place of the server.
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
    """Writes a figure below the tests' results: what was measured is worth as much as that it passed."""
    return _reported.append


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for line in _reported:
        terminalreporter.write_line(line)
