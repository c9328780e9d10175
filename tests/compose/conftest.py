"""A single stack and a single image for all files of this folder, which run in the order of their names."""

import subprocess
from collections.abc import Iterator

import httpx
import pytest

from tests.compose.image import BUILT, IMAGE, build
from tests.compose.stack import BUILD_SECONDS, REPLY_SECONDS, RUN_PATH, START_SECONDS, TOKEN, Stack


def _need_docker(*commands: list[str]) -> None:
    for command in commands:
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=30)
            reason = done.stderr.strip() if done.returncode else ""
        except (OSError, subprocess.TimeoutExpired) as error:
            reason = str(error)
        if reason:
            pytest.fail(
                f"These tests need Docker with its compose plugin: `{' '.join(command)}` does not work: {reason}"
            )


@pytest.fixture(scope="session")
def unstarted() -> Stack:
    _need_docker(["docker", "compose", "version"])
    return Stack()


@pytest.fixture(scope="session")
def stack() -> Iterator[Stack]:
    """Build and start the stack with one server and gRPC published."""
    _need_docker(["docker", "compose", "version"], ["docker", "info"])
    stack = Stack()
    stack.overrides = ["docker-compose.grpc.yml"]
    try:
        stack.timed("build", seconds=BUILD_SECONDS)
        stack.first_start_seconds = stack.timed("up", "--wait", seconds=START_SECONDS)
        yield stack
    finally:
        stack.timed("down", "--volumes", "--rmi=local", "--timeout=10", seconds=120)


@pytest.fixture(scope="session")
def docker(unstarted: Stack) -> Iterator[Stack]:
    """Build the image `tailrace`. Yields Docker's commands."""
    _need_docker(["docker", "info"])
    build(unstarted)
    yield unstarted
    if not BUILT:
        unstarted.docker("rmi", "--no-prune", IMAGE)


@pytest.fixture
def http(stack: Stack) -> Iterator[httpx.Client]:
    """Return an API client of the published port with the default token."""
    headers = {"Authorization": f"Bearer {TOKEN}"}
    base = f"http://{stack.http_address}{RUN_PATH}"
    with httpx.Client(base_url=base, headers=headers, timeout=REPLY_SECONDS, trust_env=False) as client:
        yield client
