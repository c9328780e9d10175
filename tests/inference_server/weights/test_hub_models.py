"""Models from a hub, loaded: one process with torch, which the hub's real client serves."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from tests.support.fakes import llama_tokenizer
from tests.support.hub.server import running_hub
from tests.support.processes import ROOT

CONFIGS = ("config of owner/large", "config of owner/gated")
OUTCOMES = """
import json, pathlib, sys, torch
from inference_server.weights.source import Weights
from tailrace_shared.config_errors import ConfigurationError
from inference_server.weights.loader import load_model, silence_libraries
from inference_server.weights.sizes import read_config

cache_dir = pathlib.Path(sys.argv[1])

def types_before_and_after_fetching(weights):
    configs = [read_config(weights, cache_dir, may_fetch=may_fetch) for may_fetch in (False, True, False)]
    return [config and config.model_type for config in configs]

silence_libraries()
for name in sys.argv[2:]:
    hub, _, revision = name.removeprefix("config of ").partition("@")
    weights = Weights(hub=hub, revision=revision or None)
    try:
        if name.startswith("config of "):
            print(json.dumps([name, types_before_and_after_fetching(weights)]), flush=True)
            continue
        loaded = load_model(weights, "float32", device=torch.device("cpu"), cache_dir=cache_dir)
        outcome = f"loaded {loaded.model.num_parameters()} parameters, {len(loaded.tokenizer)} tokens"
    except ConfigurationError as error:
        outcome = str(error)
    except Exception as error:
        outcome = f"uncaught {type(error).__name__}"
    print(json.dumps([name, outcome]), flush=True)
"""


@pytest.fixture(scope="module")
def hub(tiny_model):
    with running_hub() as hub:
        hub.add("owner/tiny", tiny_model("llama-2"))
        hub.add("owner/large", tiny_model("llama-2"))
        hub.add("owner/gated", tiny_model("llama-2"), refusal="gated")
        yield hub


@pytest.fixture(scope="module", autouse=True)
def process(hub, tmp_path_factory):
    """Start the process before this file's first test, because its imports take seconds."""
    home = tmp_path_factory.mktemp("hub")
    names = ["owner/gated", "owner/missing", "owner/tiny@no-such", "owner/tiny", "no id at all", *CONFIGS]
    command = [sys.executable, "-c", OUTCOMES, str(home / "tailrace"), *names]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, env=hub.environment(home), cwd=ROOT, **pipes)
    yield process
    process.kill()
    process.communicate()


@pytest.fixture(scope="module")
def outcomes(process):
    """Return the outcomes by model name."""
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr.decode()
    assert b"it/s" not in stderr
    return dict(json.loads(line) for line in stdout.splitlines())


def test_a_model_is_loaded_from_the_hub_without_a_progress_bar(outcomes, hub, tiny_model):
    num_parameters = AutoModelForCausalLM.from_pretrained(tiny_model("llama-2")).num_parameters()
    assert outcomes["owner/tiny"] == f"loaded {num_parameters} parameters, {len(llama_tokenizer())} tokens"


def test_of_a_configuration_only_that_file_is_downloaded(outcomes, hub):
    assert outcomes["config of owner/large"] == [None, "llama", "llama"]
    paths = [Path(request.path) for request in hub.requests if "/large/" in request.path]
    assert {path.name for path in paths} == {"config.json"}
    assert outcomes["config of owner/gated"].startswith(
        "owner/gated is gated: accept its licence on https://huggingface.co/owner/gated, "
    )


def test_a_gated_models_error_names_its_page_and_the_token(outcomes):
    assert outcomes["owner/gated"] == (
        "owner/gated is gated: accept its licence on https://huggingface.co/owner/gated, then set HF_TOKEN to an access token "
        "of that account"
    )


def test_a_model_missing_on_the_hub_is_named(outcomes):
    assert outcomes["owner/missing"].startswith("the hub has no model owner/missing, or it is private: ")
    assert outcomes["owner/tiny@no-such"].startswith("owner/tiny has no revision 'no-such': ")


def test_an_invalid_hub_id_is_named(outcomes):
    assert outcomes["no id at all"].startswith("'no id at all' is not a model id of the hub: Repo id must ")
