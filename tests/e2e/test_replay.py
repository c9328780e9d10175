"""`tailrace serve --record` and then `--replay`: the announcement, and requests that both refuse in the same way."""

import asyncio
import json
import re
import subprocess
import urllib.error
import urllib.request

from tests.support.processes import Process, free_address, process
from tests.support.servers import MODEL, write_catalog

RECORDED = {"prompt": "where is new york?", "max_tokens": 5, "seed": 1}
# Model and body of requests that are refused without the model.
REFUSED = [
    (MODEL, {}),
    (MODEL, {"prompt": ""}),
    (MODEL, {"prompt": "hi", "temperature": 9}),
    (MODEL, {"messages": []}),
    (MODEL, {"messages": [{"role": "user", "content": "hi"}], "continue_final_message": True}),
    ("@cf/test/unknown", {"prompt": "hi"}),
]


def answer(address: str, model: str, body: dict[str, object]) -> tuple[int, str]:
    """Return status and body of a response, without the request's id."""
    url = f"http://{address}/client/v4/accounts/local/ai/run/{model}"
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            status, text = response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            status, text = error.code, error.read().decode()
    return status, re.sub(r" \([0-9a-f-]{36}\)", "", text)


async def announced(stack: Process) -> str:
    await stack.line_with("gRPC listens")
    text = "".join(stack.lines)
    return text[text.index("Tailrace is ready") :]


async def test_a_replay_announces_a_recorded_request_and_refuses_like_the_model(tiny_model, tmp_path):
    catalog, folder = write_catalog(tmp_path / "catalog.toml", tiny_model("llama-2")), str(tmp_path / "recordings")
    address = free_address()
    own = {"catalog": str(catalog), "device": "cpu", "http_address": address, "grpc_address": free_address()}
    async with process("tailrace_cli", "serve", "--record", folder, **own) as stack:
        assert "It replays" not in await announced(stack)
        recorded = await asyncio.to_thread(answer, address, MODEL, RECORDED)
        refused = [await asyncio.to_thread(answer, address, *request) for request in REFUSED]
        too_long = await asyncio.to_thread(answer, address, MODEL, {"prompt": "word " * 9000})
    assert [status for status, _ in (recorded, too_long, *refused)] == [200, 413, *[400] * len(REFUSED)]
    async with process("tailrace_cli", "serve", "--replay", folder, **own) as stack:
        text = await announced(stack)
        assert f"It replays the one reply recorded in {folder}. No model is loaded. Try a recorded request:" in text
        assert f"Recorded replies by model: {MODEL} (1)\n" in text
        assert [await asyncio.to_thread(answer, address, *request) for request in REFUSED] == refused
        assert await asyncio.to_thread(answer, address, MODEL, RECORDED) == recorded
        assert await asyncio.to_thread(answer, address, MODEL, {"prompt": "word " * 9000}) == too_long
        curl = text[text.index("curl -N") : text.index("Recorded replies")]
        done = await asyncio.to_thread(subprocess.run, ["bash", "-c", curl], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout.endswith("data: [DONE]\n\n"), done.stdout
