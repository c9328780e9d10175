"""The command in longer cases: a chat whose bridge restarts or that has no prompt_toolkit, and stacks that start at once."""

import re
import signal

import pytest

from tests.e2e.stack import stack
from tests.support.processes import free_address, process
from tests.support.servers import write_catalog
from tests.tailrace_cli.terminal import CTRL_D, Terminal

__all__ = ["stack"]
pytestmark = pytest.mark.reliability

PROMPT = r">\s+$"
LONG = "Write a very long story."


@pytest.fixture
def chat(stack, tmp_path):
    """Returns a function that starts a chat with short replies."""

    def start(*options, **variables):
        environment = {**stack.environment, "XDG_STATE_HOME": str(tmp_path), **variables}
        return Terminal("chat", "--temperature", "0", *options, environment=environment)

    return start


def test_without_prompt_toolkit_readline_edits_completes_and_keeps(chat, tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['prompt_toolkit'] = None\n")
    with chat("--max-tokens", "8", PYTHONPATH=str(tmp_path)) as terminal:
        terminal.until(PROMPT)
        terminal.send("/reg\t")
        terminal.until("/regenerate")
        terminal.send("\x15What is the capital of Japn?\x1b[D\x1b[Da\r")
        terminal.until("Tokyo")
        terminal.until(PROMPT)
        terminal.send(CTRL_D)
        assert terminal.exit_code() == 0
    assert "+What is the capital of Japan?\n" in (tmp_path / "tailrace" / "chat-history").read_text()


def test_a_restart_of_the_bridge_loses_no_question(chat, stack):
    address = free_address()
    stack.spawn("http_bridge", name="second bridge", TAILRACE_HTTP_ADDRESS=address)
    stack.wait_until_answered(f"http://{address}/readyz")
    with chat("--url", f"http://{address}") as terminal:
        terminal.until(PROMPT)
        terminal.send(f"{LONG}\r")
        terminal.until(r"story\.\s+\S[^>]{8}")
        stack.process("second bridge").kill()
        terminal.until("too early|broke in the middle")
        terminal.until(rf"> {LONG}")
        terminal.send("\r")
        terminal.until("No bridge answers")
        stack.process("second bridge").wait()
        stack.spawn("http_bridge", name="second bridge", TAILRACE_HTTP_ADDRESS=address)
        stack.wait_until_answered(f"http://{address}/readyz")
        terminal.send("\r")
        terminal.until("context left")
        terminal.until(PROMPT)
        terminal.send(CTRL_D)
        assert terminal.exit_code() == 0


async def test_stacks_that_start_at_once_have_ports_of_their_own(tiny_model, tmp_path):
    """Two by `--port 0`, and one by port 0 in both addresses. Each announces the address at which its own bridge answers."""
    kept = {"catalog": str(write_catalog(tmp_path / "catalog.toml", tiny_model("llama-2"))), "device": "cpu"}
    anywhere = {"http_address": "127.0.0.1:0", "grpc_address": "127.0.0.1:0"}
    announced = set()
    async with (
        process("tailrace_cli", "serve", "--port", "0", **kept) as first,
        process("tailrace_cli", "serve", "--port", "0", **kept) as second,
        process("tailrace_cli", "serve", **kept, **anywhere) as third,
    ):
        for stack in (first, second, third):
            await stack.line_with("Tailrace is ready", seconds=110)
            announced.add(re.search(r"http://(\S+?)/", await stack.line_with("A playground is at"))[1])
            announced.add(re.search(r"gRPC listens on (\S+)\. ", await stack.line_with("gRPC listens on"))[1])
        for stack in (first, second, third):
            stack.send(signal.SIGINT)
            assert await stack.exit_code() == 0
    assert len(announced) == 6 and not any(address.endswith(":0") for address in announced)
