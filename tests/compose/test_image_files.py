"""The files from which the images are built. Needs no Docker."""

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

from tests.compose.stack import SERVICES
from tests.support.processes import ROOT

COMMAND = ROOT / "deploy" / "docker" / "tailrace.sh"
DOCKERFILE = (ROOT / "Dockerfile").read_text()


@pytest.fixture
def tokens(tmp_path):
    """Return a function that runs the image's command, and returns the tokens with which it starts Python, and stderr."""
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "${TAILRACE_API_TOKENS:-} ${TAILRACE_TOKEN:-} $*"\n')
    python.chmod(0o755)

    def run(*arguments, **environment):
        path = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
        done = subprocess.run([COMMAND, *arguments], env=path | environment, capture_output=True, text=True, timeout=10)
        return done.stdout.strip(), done.stderr

    return run


def test_without_tokens_the_command_sets_the_default_one_and_says_so(tokens):
    started, said = tokens("serve", "Qwen/Qwen3-0.6B")
    assert started == "local-token local-token -m tailrace_cli serve Qwen/Qwen3-0.6B" and "TAILRACE_API_TOKENS" in said


def test_clients_in_the_container_use_the_default_token_silently(tokens):
    assert tokens("models") == ("local-token local-token -m tailrace_cli models", "")


def test_an_own_token_replaces_the_default_one(tokens):
    assert tokens("serve", TAILRACE_API_TOKENS="mine") == ("mine  -m tailrace_cli serve", "")


def test_with_a_file_of_tokens_the_default_one_is_not_valid(tokens):
    assert tokens("serve", TAILRACE_API_TOKENS_FILE="/tokens") == ("-m tailrace_cli serve", "")


def test_no_build_step_depends_on_an_architecture():
    text = DOCKERFILE + "".join(path.read_text() for path in COMMAND.parent.glob("*.sh"))
    code = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    assert not re.search(r"amd64|x86_64|arm64|aarch64|--platform", code)


def test_every_requirement_of_an_image_comes_from_a_lock_file():
    assert not re.search(r"^(RUN|    ).*pip ", DOCKERFILE, re.MULTILINE)
    installs = re.findall(r"pip (?:install|download).*", (COMMAND.parent / "install.sh").read_text())
    assert len(installs) == 3 and "--require-hashes" in installs[0]
    assert all('"$torch"' in each for each in installs[1:])


def test_the_label_has_the_projects_version():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f'org.opencontainers.image.version="{version}"' in DOCKERFILE


def test_every_service_of_the_compose_file_has_its_target_and_tailrace_is_the_default_one():
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    targets = [service["build"]["target"] for service in services.values() if "build" in service]
    stages = re.findall(r"^FROM \S+ AS (\S+)$", DOCKERFILE, re.MULTILINE)
    assert targets == SERVICES and set(targets) < set(stages) and stages[-1] == "tailrace"


def test_the_build_context_contains_no_compiled_files():
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert {"inference_server/kernels/compiled", "inference_server/weights/prepared", "**/__pycache__"} <= set(ignored)
    assert ignored[1] == "*" and all(
        Path(ROOT / line[1:].partition("*")[0]).exists() for line in ignored if line[0] == "!"
    )
