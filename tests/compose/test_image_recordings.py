"""Recorded replies with the image: recorded by the user of a folder, and replayed without memory for a model."""

import json
import os

import pytest

from tests.compose.image import container, wait_until_healthy
from tests.compose.stack import MODELS

pytestmark = [pytest.mark.compose, pytest.mark.timeout(900)]

# The tests' own user, as docs/testing.md says; for root another one, so that the files' rights matter.
UID = os.getuid() or 12345
RUN = ("tailrace", "run", MODELS[2], "What is the capital of Japan?", "--max-tokens=12")


@pytest.fixture(scope="module")
def recorded(docker, tmp_path_factory):
    """Record one reply. Returns the folder and the reply."""
    folder = tmp_path_factory.mktemp("recordings")
    folder.chmod(0o755)  # pytest's folders are for their owner alone
    folder.parent.chmod(0o755)
    if os.getuid() == 0:
        os.chown(folder, UID, -1)
    options = [f"--user={UID}:0", f"--volume={folder}:/recordings", "-e", "OMP_NUM_THREADS=1"]
    arguments = ("serve", "--deterministic", "--record", "/recordings", MODELS[2])
    with container(docker, *options, arguments=arguments) as one:
        wait_until_healthy(docker, one)
        return folder, docker.docker("exec", one, *RUN)


@pytest.fixture(scope="module")
def replaying(docker, recorded):
    """Start a replay with 300 MB, which not even the smallest default model fits. Returns the container."""
    options = [
        "--memory=300m",
        "--user=54321:0",
        "--read-only",
        "--tmpfs=/tmp",
        f"--volume={recorded[0]}:/recordings:ro",
    ]
    with container(docker, *options, arguments=("serve", "--replay", "/recordings")) as one:
        wait_until_healthy(docker, one)
        yield one


def test_the_recording_belongs_to_the_user_of_the_container(recorded):
    files = sorted(recorded[0].glob("smollm2-*.json"))
    assert len(files) == 1 and files[0].stat().st_uid == UID
    assert json.loads(files[0].read_text())["method"] == "Run"


def test_the_recorded_reply_is_replayed(docker, recorded, replaying):
    assert docker.docker("exec", replaying, *RUN) == recorded[1]


def test_another_prompt_is_refused(docker, replaying):
    with pytest.raises(AssertionError, match="No recording of this request"):
        docker.docker("exec", replaying, "tailrace", "run", MODELS[2], "What is the capital of Peru?")


def test_a_replay_loads_no_torch_and_no_weights(docker, replaying):
    mapped = docker.docker("exec", replaying, "sh", "-c", "cat /proc/[0-9]*/maps 2>/dev/null; true")
    assert "/python" in mapped
    assert "libtorch" not in mapped and ".gguf" not in mapped
