"""Weights from a hub."""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from transformers import AutoModelForCausalLM

from tests.support.fakes import llama_tokenizer

# A hub on this machine, read by a separate process, because huggingface_hub fixes its address at import.

COMMIT = "a" * 40
CONFIGS = ("config of owner/large", "config of owner/gated")
OUTCOMES = """
import json, logging, pathlib, sys, torch
from inference_server.weights.source import Weights
from tailrace_shared.config_errors import ConfigurationError
from inference_server.weights.loader import load_model, silence_libraries
from inference_server.weights.sizes import read_config

def types_before_and_after_fetching(weights):
    configs = [read_config(weights, pathlib.Path("unused"), may_fetch=may_fetch) for may_fetch in (False, True, False)]
    return [config and config.model_type for config in configs]

silence_libraries()
for name in sys.argv[1:]:
    hub, _, revision = name.removeprefix("config of ").partition("@")
    weights = Weights(hub=hub, revision=revision or None)
    try:
        if name.startswith("config of "):
            print(json.dumps([name, types_before_and_after_fetching(weights)]), flush=True)
            continue
        loaded = load_model(weights, "float32", device=torch.device("cpu"), cache_dir=pathlib.Path("unused"))
        outcome = f"loaded {loaded.model.num_parameters()} parameters, {len(loaded.tokenizer)} tokens"
    except ConfigurationError as error:
        outcome = str(error)
    except Exception as error:
        outcome = f"uncaught {type(error).__name__}"
    print(json.dumps([name, outcome]), flush=True)
"""


class HubHandler(BaseHTTPRequestHandler):
    """Answers as the hub does. A model's name is the error that it causes."""

    def do_GET(self):
        path = urlsplit(self.path).path
        self.server.paths.append(path)
        if "/missing/" in path:
            self.refuse(401, "RepoNotFound")
        elif "/gated-to-everybody/" in path or ("/gated/" in path and "/resolve/" in path):
            # A gated model: its files are listed, but a download is 401 without a token and 403 with one.
            self.refuse(401 if "/gated/" in path else 403, "GatedRepo")
        elif path.endswith("/revision/no-such"):
            self.refuse(404, "RevisionNotFound")
        elif "/breaks-off/" in path:
            self.close_connection = True
        elif path.startswith("/api/models/") and "/revision/" in path:
            self.answer(json.dumps({"id": "owner/tiny", "sha": COMMIT, "siblings": []}).encode())
        elif "/tree/" in path:
            files = [*self.server.folder.iterdir(), Path(__file__)]  # a file that no server needs
            entries = [{"type": "file", "path": f.name, "size": f.stat().st_size, "oid": f.name} for f in files]
            self.answer(json.dumps(entries).encode())
        elif "/resolve/" in path:
            self.answer((self.server.folder / path.rpartition("/")[2]).read_bytes(), etag=path.rpartition("/")[2])
        else:
            self.refuse(404, "EntryNotFound")

    do_HEAD = do_GET

    def answer(self, body, *, etag="x"):
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{etag}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def refuse(self, status, code):
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


class Hub(ThreadingHTTPServer):
    def __init__(self, folder):
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.folder = folder
        self.paths = []

    def client(self, home, *names, **environment):
        """Start a process that loads each model and prints the outcome."""
        variables = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
        variables |= {"HF_ENDPOINT": f"http://127.0.0.1:{self.server_port}", "HF_HOME": str(home), "NO_PROXY": "*"}
        variables |= {"PYTHONPATH": str(Path(__file__).parents[3]), "OMP_NUM_THREADS": "1", **environment}
        command = [sys.executable, "-c", OUTCOMES, *names]
        return subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.fixture(scope="module")
def hubs(tiny_model, tmp_path_factory):
    """Run two hubs, the second for a process that must not send requests to it."""
    hubs = [Hub(tiny_model("llama-2")) for _ in range(2)]
    for hub in hubs:
        threading.Thread(target=hub.serve_forever, daemon=True).start()
    yield hubs
    for hub in hubs:
        hub.shutdown()
        hub.server_close()


@pytest.fixture(scope="module", autouse=True)
def clients(hubs, tmp_path_factory):
    """Start the processes before this file's first test, because their imports take seconds."""
    online, offline = hubs
    home = tmp_path_factory.mktemp("hub")
    names = ["gated", "gated-to-everybody", "missing", "tiny@no-such", "breaks-off", "tiny"]
    clients = [
        online.client(home / "online", *(f"owner/{name}" for name in names), "no id at all", *CONFIGS),
        offline.client(home / "offline", "owner/tiny", HF_HUB_OFFLINE="1"),
    ]
    yield clients
    for client in clients:
        client.kill()
        client.communicate()


@pytest.fixture(scope="module")
def outcomes(clients):
    """Return the outcomes by model name: online, offline."""
    outputs = [client.communicate(timeout=60) for client in clients]
    for client, (_, stderr) in zip(clients, outputs, strict=True):
        assert client.returncode == 0, stderr.decode()
    return [dict(json.loads(line) for line in stdout.splitlines()) for stdout, _ in outputs]


def test_a_model_is_loaded_from_the_hub(outcomes, hubs, tiny_model):
    num_parameters = AutoModelForCausalLM.from_pretrained(tiny_model("llama-2")).num_parameters()
    assert outcomes[0]["owner/tiny"] == f"loaded {num_parameters} parameters, {len(llama_tokenizer())} tokens"
    downloaded = {path.rpartition("/")[2] for path in hubs[0].paths if path.startswith("/owner/tiny/resolve/")}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= downloaded
    assert Path(__file__).name not in downloaded


def test_of_a_configuration_only_that_file_is_downloaded(outcomes, hubs):
    assert outcomes[0]["config of owner/large"] == [None, "llama", "llama"]
    assert {path for path in hubs[0].paths if path.startswith("/owner/large/")} == {
        f"/owner/large/resolve/{COMMIT}/config.json"
    }
    assert outcomes[0]["config of owner/gated"].startswith("owner/gated is gated: accept its licence on the hub, ")


@pytest.mark.parametrize("name", ["owner/gated", "owner/gated-to-everybody"])
def test_a_gated_models_error_names_the_token(outcomes, name):
    assert outcomes[0][name] == (
        f"{name} is gated: accept its licence on the hub, then set HF_TOKEN to an access token of that account"
    )


def test_a_model_missing_on_the_hub_is_named(outcomes):
    assert outcomes[0]["owner/missing"].startswith("the hub has no model owner/missing, or it is private: ")
    assert outcomes[0]["owner/tiny@no-such"].startswith("owner/tiny has no revision 'no-such': ")


def test_an_invalid_hub_id_is_named(outcomes):
    assert " no id at all" in outcomes[0]["no id at all"]
    assert ": Repo id must " in outcomes[0]["no id at all"]


def test_offline_sends_no_request_and_names_the_variable(outcomes, hubs):
    assert outcomes[1]["owner/tiny"].startswith("owner/tiny is not in the local cache")
    assert "unset HF_HUB_OFFLINE" in outcomes[1]["owner/tiny"]
    assert hubs[1].paths == []


def test_a_connection_that_breaks_off_is_reported_as_a_failed_download(outcomes):
    assert outcomes[0]["owner/breaks-off"].startswith("downloading owner/breaks-off failed: ")
