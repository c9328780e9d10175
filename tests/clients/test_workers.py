"""Unmodified Workers on every runtime that developers use: streams, complete replies and errors.

The bridge sends comments, which the runtimes pass on and parsers of event streams skip.
"""

import json
import subprocess
from contextlib import contextmanager

import pytest
import requests

from tests.clients.node_programs import environment, install, serving
from tests.support.processes import ROOT, free_address

pytestmark = pytest.mark.clients

PROMPT = "What is the capital of Japan?"
RUNTIMES = {
    "workerd": ["node", "run-workerd.mjs", "modern.js"],
    "miniflare-4": ["node", "run-miniflare.mjs"],
    "wrangler-3": ["node", "run-wrangler3.mjs"],
}


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    return install(ROOT / "examples" / "worker", tmp_path_factory.mktemp("workers") / "worker")


@contextmanager
def worker(examples, bridge, command):
    address = free_address()
    with serving(command, examples, address, LISTEN=address, BRIDGE=bridge) as url:
        yield url


def bundle(examples, source, folder):
    """Bundle a Worker of `folder` with its packages. Returns the path of the bundle."""
    result = examples / "dist" / f"{folder.parent.name}-{source}"
    command = [examples / "node_modules/.bin/esbuild", source, "--bundle", "--format=esm", f"--outfile={result}"]
    subprocess.run(command, cwd=folder, env=environment(), check=True, timeout=60, capture_output=True)
    return str(result)


def streamed(url, prompt=PROMPT):
    with requests.get(url, params={"prompt": prompt}, stream=True, timeout=60) as response:
        assert response.headers["content-type"] == "text/event-stream", response.text
        chunks = [chunk for chunk in response.iter_content(None) if chunk]
    *events, done = b"".join(chunks).decode().strip().split("\n\n")
    assert done == "data: [DONE]"
    data = [event.removeprefix("data: ") for event in events if not event.startswith(":")]
    return "".join(json.loads(each)["response"] for each in data), len(chunks)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_modern_worker_runs_unmodified(examples, commenting_bridge, runtime):
    with worker(examples, commenting_bridge, RUNTIMES[runtime]) as url:
        text, num_chunks = streamed(url)
        assert len(text) > 10 and num_chunks > 3
        whole = requests.get(url, params={"prompt": PROMPT, "whole": ""}, timeout=60).json()
        assert whole["response"] and whole["usage"]["total_tokens"] > 0
        refused = requests.get(url, params={"prompt": "word " * 3000}, timeout=60)
        assert refused.status_code == 502 and refused.json()["message"].startswith("5021: ")


@pytest.mark.parametrize("version", ["1.0.35", "1.1.0"])
def test_the_announcements_worker_runs_unmodified(examples, commenting_bridge, tmp_path_factory, version):
    packages = tmp_path_factory.mktemp("package")
    (packages / "package.json").write_text(json.dumps({"dependencies": {"@cloudflare/ai": version}}))
    folder = install(packages, packages / "installed")
    (folder / "announcement.js").write_text((examples / "announcement.js").read_text())
    result = bundle(examples, "announcement.js", folder)
    with worker(examples, commenting_bridge, ["node", "run-workerd.mjs", result]) as url:
        text, _ = streamed(url)
        assert len(text) > 10


def test_a_worker_runs_vercels_ai_sdk_over_its_binding(examples, programs, commenting_bridge):
    result = bundle(examples, "worker-ai-sdk.js", programs)
    with worker(examples, commenting_bridge, ["node", "run-workerd.mjs", result]) as url:
        assert "Tokyo" in requests.get(url, timeout=60).text
        found = requests.get(url, params={"whole": ""}, timeout=60).json()
    assert "Tokyo" in found["whole"] and set(found["object"]) == {"city"}
    assert found["calls"] == [["getWeather", ["city"]]]


def test_current_wrangler_runs_a_modern_worker_over_a_shim(examples, commenting_bridge):
    address = free_address()
    host, port = address.split(":")
    shim = examples / "wrangler-shim" / "shim.toml"
    shim.write_text(shim.read_text().replace("http://127.0.0.1:8787", commenting_bridge))
    files = ["-c", "wrangler-shim/app.toml", "-c", "wrangler-shim/shim.toml"]
    command = ["node", "node_modules/wrangler/bin/wrangler.js", "dev", *files, "--ip", host, "--port", port]
    with serving(command, examples, address) as url:
        text, _ = streamed(url)
        assert len(text) > 10
        assert requests.get(url, params={"prompt": PROMPT, "whole": ""}, timeout=60).json()["response"]
