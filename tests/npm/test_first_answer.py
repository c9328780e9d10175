"""From an empty folder to a streamed reply without a network: npm's cache and an installed server are all there is."""

import json
import shutil
import subprocess

import pytest

from tests.clients.node_programs import environment, node_folder
from tests.npm.build import NPM, npm
from tests.npm.conftest import FOLDER
from tests.support.processes import ROOT

pytestmark = pytest.mark.npm

# A network namespace of its own, with a loopback interface and nothing else.
OFFLINE = ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$0" "$@"']


def npm_cache():
    """Return the folder of npm's cache, which the project's own home folder does not have."""
    command = [node_folder() / "node", NPM / "npm-cli.js", "config", "get", "cache"]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=60).stdout.strip()


def can_be_offline():
    return shutil.which("ip") and subprocess.run([*OFFLINE, "true"], capture_output=True).returncode == 0


@pytest.mark.skipif(not can_be_offline(), reason="a network namespace needs root, unshare and ip")
def test_an_empty_folder_becomes_a_streaming_worker(new_project, starting, packages, tmp_path):
    folder = tmp_path / "empty"
    folder.mkdir()
    (package,) = (ROOT / "build").glob("tailrace-*.tgz")
    # npm's cache has the packages since their installation, and now their descriptions too.
    (folder / "package.json").write_text('{ "private": true }')
    npm(folder, "install", "--package-lock-only", "--prefer-offline", "wrangler@4.164.0")
    settings = starting | {"npm_config_cache": npm_cache()}
    done = new_project.run(*OFFLINE, "node", str(FOLDER / "first_answer.mjs"), str(folder), str(package), **settings)
    assert done.code == 0, done.output
    times = json.loads(done.output.splitlines()[-1])
    assert times["chunks"] > 3
    assert not list(folder.glob(".tailrace-*"))
