"""The image in containers with limited memory and processors (`docker run --memory --cpus`)."""

import os
import re

import pytest

from tests.compose.image import container, ended, wait_until_healthy
from tests.compose.stack import MODELS

pytestmark = [pytest.mark.compose, pytest.mark.timeout(900)]

# A Llama 2 7B. Only its configuration is needed to compute its memory.
CONFIG = """{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 32000, "hidden_size": 4096,
"intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32, "max_position_embeddings": 4096}"""


@pytest.fixture(scope="module")
def limited(docker):
    """Start the default models with 2 GiB and one processor. Returns the container."""
    with container(docker, "--memory=2g", "--cpus=1") as one:
        wait_until_healthy(docker, one)
        yield one


@pytest.fixture(scope="module")
def report(docker, limited):
    """Return the output of `tailrace doctor` in the container."""
    return docker.docker("exec", limited, "tailrace", "doctor", seconds=120)


def test_the_server_computes_on_the_processors_of_the_limit(docker, limited, report):
    assert "cores that this process may use: 1\n" in report
    if len(os.sched_getaffinity(0)) > 1:  # otherwise the limit changes nothing
        assert re.search(r"computing on 1 thread instead of \d+", docker.log(limited))


def test_the_memory_is_that_of_the_limit(docker, limited, report):
    assert re.search(r"\d\.\d GiB of 2\.0 GiB memory are available; a control group \(container\) limits them", report)
    assert re.search(r"allows 2\.0 GiB of the machine's \d+\.\d GiB of memory", docker.log(limited))


def test_every_model_answers_within_the_limit(docker, limited):
    for model in MODELS[:3]:
        assert docker.docker("exec", limited, "tailrace", "run", model, "hello", "--max-tokens=20")
    assert docker.docker("inspect", "--format={{.State.Running}} {{.State.OOMKilled}}", limited) == "true false"


def _refusal(docker, *options, arguments=()):
    """Run a container that must refuse to start its models. Returns the server's sentence."""
    with container(docker, *options, arguments=arguments) as one:
        code, was_killed = ended(docker, one)
        log = docker.log(one)
    assert (code, was_killed) == (1, False), log
    assert "Traceback" not in log and not re.search(r"(loading|packing|reading) .*(gguf|llama)", log, re.IGNORECASE)
    (sentence,) = re.findall(r"tailrace server: (.*)", log)
    print(sentence)
    return sentence


def test_models_that_do_not_fit_are_refused_before_they_are_loaded(docker):
    assert re.search(r"need \d\.\d GiB of memory, but 0\.\d GiB are free", _refusal(docker, "--memory=600m"))


def test_a_large_model_is_refused_by_its_configuration(docker, tmp_path):
    (tmp_path / "config.json").write_text(CONFIG)
    tmp_path.chmod(0o755)
    sentence = _refusal(docker, "--memory=2g", f"--volume={tmp_path}:/llama:ro", arguments=("serve", "/llama"))
    assert re.search(r"need \d+\.\d GiB of memory, but 1\.\d GiB are free", sentence)
