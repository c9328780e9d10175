"""DNS rebinding in a real browser: a page of another name, which leads to this machine, reads no reply of the bridge."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Browser, Page

from tests.support.processes import ROOT, free_address

pytestmark = pytest.mark.browser

NAME = "evil.example"
READ = "async path => { const reply = await fetch(path); return [reply.status, await reply.text()] }"


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """The port of a bridge without tokens and without an inference server."""
    address = free_address()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TAILRACE_")}
    variables = {"TAILRACE_HTTP_ADDRESS": address, "TAILRACE_GRPC_ADDRESS": free_address()}
    process = subprocess.Popen(
        [sys.executable, "-m", "http_bridge"], cwd=ROOT, env=environment | variables, stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    assert b"listening on" in process.stderr.readline()
    yield int(address.rpartition(":")[2])
    process.terminate()
    process.communicate(timeout=10)


@pytest.fixture
def page(launch: Callable[..., Browser]) -> Page:
    return launch(f"--host-resolver-rules=MAP {NAME} 127.0.0.1").new_page()


@pytest.mark.parametrize("path", ["/openapi.json", "/v1/models", "/playground/main.js"])
def test_a_page_of_a_rebound_name_reads_no_reply(page, port, path):
    # Health is open to any name, so this page has the same origin as the bridge: the state that the attacker reaches.
    page.goto(f"http://{NAME}:{port}/healthz")
    status, text = page.evaluate(READ, path)
    assert status == 403 and "TAILRACE_ALLOWED_HOSTS" in text


def test_the_playground_opens_under_the_names_of_this_machine_alone(page, port):
    for name, status in ((NAME, 403), ("127.0.0.1", 200), ("localhost", 200)):
        response = page.goto(f"http://{name}:{port}/")
        assert response is not None and response.status == status
    assert page.evaluate(READ, "/openapi.json")[0] == 200
