"""Projects with wrangler of two generations, the built npm package in them, and a running stack."""

import fcntl
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.stack import Stack
from tests.npm.build import NPM, npm
from tests.npm.support import Project
from tests.support.processes import ROOT

FOLDER = Path(__file__).parent


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
def packages(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Callable[[str], Path]:
    """Return a function that installs the packages of a generation and this package, once, and returns their folder."""
    base = tmp_path_factory.getbasetemp()
    # The processes of pytest-xdist share the packages.
    shared = base if worker_id == "master" else base.parent
    (built,) = (ROOT / "build").glob("tailrace-*.tgz")

    def install(generation: str) -> Path:
        folder, done = shared / generation, shared / f"{generation}.installed"
        with (shared / f"{generation}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)
                shutil.copytree(FOLDER / "projects" / generation, folder)
                npm(folder, "ci", "--prefer-offline")
                npm(folder, "install", "--no-save", "--offline", str(built))
                done.touch()
        return folder

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


@pytest.fixture
def starting(stack, tmp_path):
    """Return variables with which a server starts quickly: one engine and one thread. All its processes have a mark."""
    catalog = stack.environment["TAILRACE_CATALOG"]
    command = f"{sys.executable} -m tailrace_cli"
    return {"TAILRACE_COMMAND": command, "TAILRACE_CATALOG": catalog, "OMP_NUM_THREADS": "1", "MARK": str(tmp_path)}


def make_project(packages: Path, folder: Path) -> Project:
    shutil.copytree(FOLDER / "workers", folder)
    # Packages resolve the names of others from their own folder, so that one tree serves many projects.
    (folder / "node_modules").symlink_to(packages / "node_modules")
    (folder / "package.json").write_text('{ "name": "project", "private": true, "type": "module" }\n')
    pool = "plugin" if (packages / "node_modules/@cloudflare/vitest-plugin").exists() else "pool-workers"
    for config in folder.glob("*vitest.config.mjs"):
        config.write_text(config.read_text().replace("vitest-POOL", f"vitest-{pool}"))
    home = folder.parent / "home"
    (home / "bin").mkdir(parents=True)
    for name in ("npm", "npx"):
        # The wheel's own copies of these two do not find their files.
        (home / "bin" / name).symlink_to(NPM / f"{name}-cli.js")
    return Project(folder, home)


@pytest.fixture(scope="session", autouse=True)
def _no_login() -> None:
    for name in ("CLOUDFLARE_API_TOKEN", "CLOUDFLARE_ACCOUNT_ID", "TAILRACE_URL", "TAILRACE_TOKEN"):
        os.environ.pop(name, None)
