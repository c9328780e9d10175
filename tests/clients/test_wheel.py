"""The built wheel in a virtual environment of its own: the client alone, without torch and without a web server."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import ROOT

pytestmark = [pytest.mark.clients, pytest.mark.timeout(300)]
MODEL = "@cf/meta/llama-2-7b-chat-int8"


def finished(*command: object, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=200, **options)


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """Install the wheel in an environment. Returns the folder of its commands."""
    folder = tmp_path_factory.mktemp("wheel")
    source, wheels, environment = folder / "source", folder / "wheels", folder / "environment"
    # Built from tracked files alone, so that other files of the working folder cannot enter the wheel.
    names = finished("git", "ls-files", "-z", cwd=ROOT, check=True).stdout.split("\0")
    for name in filter(None, names):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, source / name)
    finished(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", wheels, source, check=True)
    finished(sys.executable, "-m", "venv", environment, check=True)
    (wheel,) = wheels.iterdir()
    finished(environment / "bin" / "pip", "install", "--quiet", wheel, check=True)
    return environment / "bin"


@pytest.fixture
def tailrace(installed, stack, tmp_path):
    """Run the command in an empty folder, with only the stack's addresses in its environment."""
    known = {name: value for name, value in stack.environment.items() if name.endswith("_ADDRESS")}
    environment = {"PATH": os.defpath, "HOME": str(tmp_path), **known}
    return lambda *arguments: finished(installed / "tailrace", *arguments, cwd=tmp_path, env=environment)


def test_the_base_install_contains_only_the_client(installed):
    listed = finished(installed / "pip", "list", "--format", "freeze").stdout.split()
    names = {line.partition("==")[0].replace("_", "-") for line in listed} - {"pip", "setuptools", "wheel"}
    assert names == {"tailrace", "grpcio", "grpcio-status", "protobuf", "googleapis-common-protos", "typing-extensions"}


@pytest.mark.parametrize("door", [[], ["--grpc"]], ids=["rest", "grpc"])
def test_the_command_runs_a_model(tailrace, door):
    done = tailrace("run", MODEL, "What is the capital of Japan?", "--temperature", "0", "--max-tokens", "12", *door)
    assert (done.returncode, done.stderr, "Tokyo" in done.stdout) == (0, "", True)


def test_serve_without_its_extra_names_the_install_command(tailrace):
    done = tailrace("serve")
    assert (done.returncode, "pip install '.[server,bridge]'" in done.stderr) == (1, True)


def test_doctor_checks_the_stack_without_the_services_installed(tailrace):
    done = tailrace("doctor")
    assert (done.returncode, done.stderr, "is ready" in done.stdout) == (0, "", True)
