"""Projects with wrangler of two generations, the built npm package in them, and a running stack."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.clients.node_programs import environment, node_folder
from tests.e2e.stack import Stack
from tests.npm.support import Project
from tests.support.processes import ROOT

FOLDER = Path(__file__).parent
_INSTALL_SECONDS = 300


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    stack = Stack(tmp_path_factory.mktemp("stack"))
    try:
        stack.start()
        yield stack
    finally:
        stack.stop()


@pytest.fixture(scope="session")
def url(stack: Stack) -> str:
    """Return the URL of the stack's bridge."""
    return f"http://{stack.http_address}"


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that installs the packages of a generation and this package, once, and returns their folder."""
    installed: dict[str, Path] = {}
    (built,) = (ROOT / "build").glob("tailrace-*.tgz")

    def install(generation: str) -> Path:
        if generation not in installed:
            folder = tmp_path_factory.mktemp(generation) / generation
            shutil.copytree(FOLDER / "projects" / generation, folder)
            npm(folder, "ci", "--prefer-offline")
            npm(folder, "install", "--no-save", "--offline", str(built))
            installed[generation] = folder
        return installed[generation]

    return install


@pytest.fixture(params=["new", "old"])
def generation(request: pytest.FixtureRequest) -> str:
    """Return "new" for miniflare 5 and "old" for miniflare 4. projects/ has the versions."""
    return str(request.param)


@pytest.fixture
def project(packages: Callable[[str], Path], generation: str, tmp_path: Path) -> Project:
    """Return a project with the example Workers and the packages of the generation."""
    return make_project(packages(generation), tmp_path / "project")


@pytest.fixture
def new_project(packages: Callable[[str], Path], tmp_path: Path) -> Project:
    """Return a project with the example Workers and the newest packages."""
    return make_project(packages("new"), tmp_path / "project")


def make_project(packages: Path, folder: Path) -> Project:
    shutil.copytree(FOLDER / "workers", folder)
    # Packages resolve the names of others from their own folder, so that one tree serves many projects.
    (folder / "node_modules").symlink_to(packages / "node_modules")
    (folder / "package.json").write_text('{ "name": "project", "private": true, "type": "module" }\n')
    pool = "plugin" if (packages / "node_modules/@cloudflare/vitest-plugin").exists() else "pool-workers"
    for config in folder.glob("*vitest.config.mjs"):
        config.write_text(config.read_text().replace("vitest-POOL", f"vitest-{pool}"))
    home = folder.parent / "home"
    home.mkdir()
    return Project(folder, home)


def npm(folder: Path, *arguments: str) -> None:
    program = node_folder().parent / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    command = [node_folder() / "node", program, *arguments, "--no-audit", "--no-fund", "--loglevel=error"]
    done = subprocess.run(
        command, cwd=folder, env=environment(), timeout=_INSTALL_SECONDS, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="session", autouse=True)
def _no_login() -> None:
    for name in ("CLOUDFLARE_API_TOKEN", "CLOUDFLARE_ACCOUNT_ID", "TAILRACE_URL", "TAILRACE_TOKEN"):
        os.environ.pop(name, None)
