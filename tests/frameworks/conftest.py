"""A running stack with the default model, the npm package, and a reader's terminal in a copy of an example."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from inference_server.settings.models import DEFAULT_CATALOG
from tests.clients.node_programs import environment
from tests.e2e.stack import Stack
from tests.frameworks.pages import EXAMPLES
from tests.frameworks.projects import copy_project, npm_programs
from tests.frameworks.terminal import Terminal
from tests.frameworks.traffic import Traffic
from tests.support.processes import ROOT

# npm finds packages in its cache only.
_OFFLINE = {"npm_config_offline": "true"}
_PACKAGE = ROOT / "build" / "tailrace-0.1.0.tgz"


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Start server and bridge with the default catalog as it is."""
    stack = Stack(tmp_path_factory.mktemp("stack"), DEFAULT_CATALOG.read_text())
    try:
        stack.start()
        yield stack
    finally:
        stack.stop()


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the programs `npm` and `npx`."""
    return npm_programs(tmp_path_factory.mktemp("bin"))


@pytest.fixture(scope="session")
def package() -> Path:
    """Build the npm package, as `make npm-package` does, and return its path."""
    subprocess.run([sys.executable, "-m", "tests.npm.build"], cwd=ROOT, check=True, timeout=300)
    return _PACKAGE


@pytest.fixture(scope="session")
def traffic() -> Iterator[Traffic]:
    """Return a proxy that refuses every request and notes its host. The commands of a page use it."""
    with Traffic() as traffic:
        yield traffic


@pytest.fixture
def reader(
    stack: Stack, programs: Path, package: Path, traffic: Traffic, tmp_path: Path
) -> Iterator[Callable[..., tuple[Path, Terminal]]]:
    """Return a function that copies an example and opens a terminal in it, without a login and without a network.

    With online=True, npm may ask its registry.
    """
    home = tmp_path / "home"
    home.mkdir()
    settings = environment(
        HOME=str(home),
        XDG_CONFIG_HOME=str(home / "config"),
        TAILRACE_URL=f"http://{stack.http_address}",
        npm_config_cache=str(Path.home() / ".npm"),
        npm_config_prefer_offline="true",
        npm_config_audit="false",
        npm_config_fund="false",
        ASTRO_TELEMETRY_DISABLED="1",
        NUXT_TELEMETRY_DISABLED="1",
        **_OFFLINE,
        **traffic.settings,
    )
    settings["PATH"] = f"{programs}:{settings['PATH']}"
    for name in ("CLOUDFLARE_API_TOKEN", "CLOUDFLARE_API_KEY", "CLOUDFLARE_ACCOUNT_ID"):
        settings.pop(name, None)
    with ExitStack() as opened:

        def open_project(example: str, *, online: bool = False) -> tuple[Path, Terminal]:
            project = copy_project(EXAMPLES / example, tmp_path)
            own = {
                name: value for name, value in settings.items() if name not in _OFFLINE and name not in traffic.settings
            }
            terminal = Terminal(project, own if online else settings)
            opened.callback(terminal.close)
            return project, terminal

        yield open_project
