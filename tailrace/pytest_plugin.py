"""The pytest plugin: the fixtures `tailrace_server` and `tailrace_client`, and their options.

pytest imports this module in every project that has Tailrace installed. It therefore imports nothing but pytest, and does
nothing before a test uses a fixture.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tailrace.client import Client
    from tailrace.testing.server import TestServer

# The folder that the processes of one test run share. It contains the server's state and log.
_FOLDER = pytest.StashKey[Path]()
# Keys by which pytest-xdist passes its workers the folder, and the id of the process that ends last.
_FOLDER_INPUT, _OWNER_INPUT = "tailrace_folder", "tailrace_owner"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of the fixtures."""
    group = parser.getgroup("tailrace", "Tailrace, for tests that use tailrace_server or tailrace_client")
    group.addoption(
        "--tailrace-model",
        action="append",
        default=[],
        metavar="MODEL",
        help="model to serve, as `tailrace serve` takes it; may be repeated; the first one answers requests without a model",
    )
    group.addoption(
        "--tailrace-recordings", metavar="FOLDER", help="replay the replies recorded in this folder; no model is loaded"
    )
    group.addoption(
        "--tailrace-record", action="store_true", help="record the replies into the folder of --tailrace-recordings"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Refuse options that contradict each other, before any test runs."""
    recordings, records = config.getoption("--tailrace-recordings"), config.getoption("--tailrace-record")
    if records and not recordings:
        raise pytest.UsageError("--tailrace-record needs --tailrace-recordings FOLDER")
    if recordings and os.environ.get("TAILRACE_URL"):
        raise pytest.UsageError(
            "--tailrace-recordings needs a server that the tests start, and TAILRACE_URL names another one: unset it"
        )


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Pass the shared folder, and the id of this process, to a worker of pytest-xdist."""
    node.workerinput[_FOLDER_INPUT] = str(_folder(node.config))
    node.workerinput[_OWNER_INPUT] = os.getpid()


def pytest_unconfigure(config: pytest.Config) -> None:
    """Stop the server, if one was started. With pytest-xdist, the controlling process does this after its workers."""
    folder = config.stash.get(_FOLDER, None)
    if folder is not None and not hasattr(config, "workerinput"):
        from tailrace.testing.server import stop

        stop(folder)


@pytest.fixture(scope="session")
def tailrace_server(request: pytest.FixtureRequest) -> "TestServer":
    """The server of the test run: the one at TAILRACE_URL, or one that is started with the first test that needs it."""
    from tailrace.testing import server

    config = request.config
    try:
        if url := os.environ.get("TAILRACE_URL"):
            return server.running(url)
        return server.shared(
            _folder(config),
            owner=getattr(config, "workerinput", {}).get(_OWNER_INPUT, os.getpid()),
            models=config.getoption("--tailrace-model"),
            settings=_settings(config),
            report=_reporter(config),
        )
    except server.StartError as error:
        sentence = str(error)
    # Outside of the except clause, whose error pytest would print as well.
    pytest.fail(sentence, pytrace=False)


@pytest.fixture(scope="session")
def tailrace_client(request: pytest.FixtureRequest, tailrace_server: "TestServer") -> "Iterator[Client]":
    """A tailrace.Client of the server. Without `model`, requests use the first --tailrace-model."""
    from tailrace.client import Client

    # A server that this test run started (only then is there a log) serves the option's models, the first by default.
    models = [] if tailrace_server.log else request.config.getoption("--tailrace-model")
    with Client(tailrace_server.url, model=next(iter(models), None)) as client:
        yield client


def _folder(config: pytest.Config) -> Path:
    if _FOLDER not in config.stash:
        given = getattr(config, "workerinput", {}).get(_FOLDER_INPUT)
        if given is None:
            import tempfile

            given = tempfile.mkdtemp(prefix="tailrace-pytest-")
        config.stash[_FOLDER] = Path(given)
    return config.stash[_FOLDER]


def _settings(config: pytest.Config) -> dict[str, str]:
    """Return the server's settings: deterministic replies, and the recordings that the command line names."""
    settings = {"TAILRACE_DETERMINISTIC": "true"}
    if folder := config.getoption("--tailrace-recordings"):
        settings["TAILRACE_RECORDINGS"] = str(Path(config.invocation_params.dir, folder))
        settings["TAILRACE_RECORDINGS_MODE"] = "record" if config.getoption("--tailrace-record") else "replay"
    return settings


def _reporter(config: pytest.Config) -> Callable[[str], None]:
    """Return a function that prints a line in the terminal even while output is captured. Workers print nothing."""
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    capture = config.pluginmanager.get_plugin("capturemanager")

    def report(line: str) -> None:
        if terminal is not None and capture is not None and not hasattr(config, "workerinput"):
            with capture.global_and_fixture_disabled():
                terminal.ensure_newline()
                terminal.write_line(line)

    return report
