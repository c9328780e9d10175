"""The image `tailrace` of the tests: its name, and containers of it."""

import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.compose.stack import BUILD_SECONDS, START_SECONDS, Stack

CPU_INDEX = "https://download.pytorch.org/whl/cpu"
# An image that exists already, or a name for the one that is built here.
BUILT = os.environ.get("TAILRACE_TEST_IMAGE", "")
IMAGE = BUILT or f"tailrace-test-{secrets.token_hex(4)}"


def build(docker: Stack) -> None:
    """Build the image, unless TAILRACE_TEST_IMAGE names one. The layers stay for the next build."""
    if BUILT:
        return
    index = os.environ.get("TORCH_INDEX_URL") or CPU_INDEX
    started = time.monotonic()
    docker.docker("build", f"--tag={IMAGE}", f"--build-arg=TORCH_INDEX_URL={index}", ".", seconds=BUILD_SECONDS)
    print(f"docker build: {time.monotonic() - started:.1f} s")


@contextmanager
def container(docker: Stack, *options: str, arguments: tuple[str, ...] = ()) -> Iterator[str]:
    """Run a container without a network for the `with` block. Yields its id.

    Args:
        docker: Docker's commands.
        options: Options of `docker run`.
        arguments: The container's arguments, those of the command `tailrace`.
    """
    started = docker.docker("run", "--detach", "--network=none", *options, IMAGE, *arguments)
    try:
        yield started
    finally:
        docker.docker("rm", "--force", started)


def wait_until_healthy(docker: Stack, container: str, *, first_pause: float = 2.0) -> None:
    """Wait for the image's own health check, in growing intervals, as GitHub's runner does.

    Raises:
        AssertionError: The container is unhealthy or has ended; the message contains the end of its log.
    """
    template = "{{.State.Running}} {{if .Config.Healthcheck}}{{print .State.Health.Status}}{{end}}"
    state, pause = "true starting", first_pause
    deadline = time.monotonic() + START_SECONDS
    while state == "true starting" and time.monotonic() < deadline:
        time.sleep(pause)
        pause = min(2 * pause, 8.0)
        state = docker.docker("inspect", f"--format={template}", container)
    assert state == "true healthy", docker.log(container)[-4000:]


def ended(docker: Stack, container: str) -> tuple[int, bool]:
    """Wait for the end of a container. Returns its exit code, and whether the system killed a process for its memory."""
    docker.docker("wait", container, seconds=START_SECONDS)
    code, was_killed = docker.docker("inspect", "--format={{.State.ExitCode}} {{.State.OOMKilled}}", container).split()
    return int(code), was_killed == "true"
