"""`tailrace serve`, which `make run` runs: both services, the curl, and a clean end."""

import asyncio
import os
import re
import signal
import subprocess

import pytest

from tests.support.processes import Process, children, free_address, is_running, process
from tests.support.servers import MODEL, write_catalog


@pytest.fixture
def settings(tiny_model, tmp_path):
    catalog = write_catalog(tmp_path / "catalog.toml", tiny_model("llama-2"), sequence=60)
    text = catalog.read_text().replace(MODEL, "@cf/meta/llama-2-7b-chat-int8")
    catalog.write_text(text)
    addresses = {"http_address": free_address(), "grpc_address": free_address()}
    return {"catalog": str(catalog), "device": "cpu", **addresses}


async def started_services(stack: Process) -> list[int]:
    """Return the ids of the server and the bridge, once both exist."""
    async with asyncio.timeout(30):
        while len(found := await asyncio.to_thread(children, stack.pid)) < 2:
            await asyncio.sleep(0.1)
    return found


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
        assert await stack.exit_code() == 137
        reason = "killed by signal 9; the system may have run out of memory"
        assert f"The inference server was {reason}. Stopping the bridge.\n" in stack.lines
        with pytest.raises(ProcessLookupError):
            os.kill(bridge, 0)


async def test_a_closed_terminal_stops_both_services(settings):
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ignored if the tests themselves were started by nohup
    try:
        async with process("tailrace_cli", "serve", **settings) as stack:
            await stack.line_with("Tailrace is ready")
            services = await started_services(stack)
            stack.send(signal.SIGHUP)
            assert await stack.exit_code() == 0
    finally:
        signal.signal(signal.SIGHUP, before)
    assert not any(map(is_running, services))


async def test_under_nohup_a_closed_terminal_stops_nothing(settings):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        async with process("tailrace_cli", "serve", **settings) as stack:
            await started_services(stack)
            stack.send(signal.SIGHUP)
            await stack.line_with("Tailrace is ready")
    finally:
        signal.signal(signal.SIGHUP, before)
