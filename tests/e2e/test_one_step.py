"""`tailrace serve MODEL…` from an empty cache: a hub id, a GGUF file and a name of the catalogue, from a local hub."""

import asyncio
import json
import re
import signal
import urllib.request

import pytest
from transformers import AutoModelForCausalLM

from tests.support.hub.server import running_hub
from tests.support.models.gguf_files import write_gguf
from tests.support.processes import children, free_address, is_running, process

HUB_ID, KNOWN, BEHIND = "me/Tiny", "@cf/meta/llama-3.2-1b-instruct", "meta-llama/Llama-3.2-1B-Instruct"
GGUF_FILE = "me/Tiny-GGUF:tiny.Q4_0.gguf"


@pytest.fixture
def downloading(tiny_model, tmp_path, monkeypatch):
    """The environment of a machine that has no models and reaches a hub with three."""
    with running_hub() as hub:
        for name in (HUB_ID, BEHIND):
            hub.add(name, tiny_model("llama-2"))
        model = AutoModelForCausalLM.from_pretrained(tiny_model("llama-2"))
        repository, _, file = GGUF_FILE.partition(":")
        hub.add(repository, {file: write_gguf(tmp_path / file, model, kind="Q4_0").read_bytes()})
        for name, value in hub.environment(tmp_path / "hf").items():
            monkeypatch.setenv(name, value)
        yield {"cache_dir": str(tmp_path / "cache"), "grpc_address": free_address(), "device": "cpu"}


def answer(url: str, name: str) -> str:
    body = json.dumps({"prompt": "where is new york?", "raw": True, "max_tokens": 5}).encode()
    with urllib.request.urlopen(
        urllib.request.Request(f"{url}/client/v4/accounts/local/ai/run/{name}", body)
    ) as response:
        return json.load(response)["result"]["response"]


async def test_models_of_the_hub_answer_and_a_killed_command_leaves_no_service(downloading):
    command = ("serve", HUB_ID, GGUF_FILE, KNOWN, "--port", "0", "--max-context", "300")
    async with process("tailrace_cli", *command, **downloading) as stack:
        await stack.line_with("Tailrace is ready")
        await stack.line_with("gRPC listens")
        text = "".join(stack.lines)
        assert f"/ai/run/{HUB_ID}" in text and f"Models: {HUB_ID}, {GGUF_FILE}, {KNOWN}\n" in text
        assert "prompt and reply of up to 300 tokens together" in text
        url = re.search(r"A playground is at (http://\S+)/\n", text)[1]
        for name in (HUB_ID, GGUF_FILE, KNOWN):
            assert await asyncio.to_thread(answer, url, name)
        services = await asyncio.to_thread(children, stack.pid)
        assert len(services) == 2
        stack.send(signal.SIGKILL)
        async with asyncio.timeout(30):
            while any(map(is_running, services)):
                await asyncio.sleep(0.1)
