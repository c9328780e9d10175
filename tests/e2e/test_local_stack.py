"""`tailrace serve`, which `make run` runs: both services, the curl, and a clean end."""

import asyncio
import os
import re
import signal
import subprocess

import pytest

from tests.support.processes import free_address, process
from tests.support.servers import MODEL, write_catalog


@pytest.fixture
def settings(tiny_model, tmp_path):
    catalog = write_catalog(tmp_path / "catalog.toml", tiny_model("llama-2"), sequence=60)
    text = catalog.read_text().replace(MODEL, "@cf/meta/llama-2-7b-chat-int8")
    catalog.write_text(text)
    addresses = {"http_address": free_address(), "grpc_address": free_address()}
    return {"catalog": str(catalog), "device": "cpu", **addresses}


def children(pid: int) -> list[int]:
    """Return the ids of the children of `pid`, in the order of their start."""
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, timeout=5)
    return sorted(int(line) for line in found.stdout.split())


async def test_it_prints_a_working_curl_and_stops_both_on_ctrl_c(settings):
    async with process("tailrace_cli", "serve", **settings) as stack:
        await stack.line_with("Tailrace is ready")
        await stack.line_with('"stream": true')
        text = "".join(stack.lines)
        curl = text[text.index("curl -N") :]
        done = await asyncio.to_thread(
            subprocess.run, ["bash", "-c", curl], capture_output=True, text=True, timeout=60, check=True
        )
        events = re.findall(r"^data: .*$", done.stdout, re.MULTILINE)
        assert len(events) > 5 and events[-1] == "data: [DONE]" and '"usage"' in events[-2]
        started = await asyncio.to_thread(children, stack.pid)
        assert len(started) == 2
        stack.send(signal.SIGINT)
        assert await stack.exit_code() == 0
    for pid in started:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


async def test_a_service_that_exits_stops_the_other_and_sets_the_exit_code(settings):
    async with process("tailrace_cli", "serve", **settings) as stack:
        await stack.line_with("Tailrace is ready")
        server, bridge = await asyncio.to_thread(children, stack.pid)
        os.kill(server, signal.SIGKILL)
        assert await stack.exit_code() != 0
        with pytest.raises(ProcessLookupError):
            os.kill(bridge, 0)
