"""Macs, Arm and Windows, as far as they can be simulated: what starts there, and the one sentence where it does not."""

import subprocess
import sys

import pytest

import inference_server.__main__
from inference_server.settings.server import Settings
from tailrace.testing import server
from tailrace_cli.errors import Failure
from tailrace_cli.serving import serve as serving
from tailrace_cli.serving.options import ServeOptions
from tailrace_cli.serving.serve import serve
from tailrace_shared.config_errors import ConfigurationError
from tests.supply_chain.platform_wheels import PLATFORMS, needed
from tests.support.processes import ROOT

# Modules of the standard library that Windows lacks.
_POSIX_ONLY = ("fcntl", "resource", "termios", "tty", "pty", "pwd", "grp", "readline", "curses")
# The libraries are imported before: they have branches of their own, which need the real system.
_AS_ON_WINDOWS = f"""
import asyncio, grpc, httpx2, jsonschema_rs, multiprocessing, os, signal, subprocess, sys, sysconfig, uvicorn
import grpc_health.v1.health_pb2_grpc, prometheus_client, pydantic_settings, starlette.applications, starlette.routing
sysconfig.get_config_vars()
for name in {_POSIX_ONLY!r}:
    sys.modules[name] = None
del signal.SIGHUP, os.fork, os.sysconf
sys.platform = "win32"
import tailrace.pytest_plugin
from tailrace import *
tailrace.Client('http://localhost:1').close()
tailrace.Client('grpc://localhost:1').close()
import http_bridge.app, http_bridge.__main__
from tailrace_cli.__main__ import main
sys.argv[1:] = ["run", "--help"]
main()
"""


@pytest.fixture
def windows(monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")


@pytest.fixture
def without_torch(monkeypatch):
    find = serving.importlib.util.find_spec
    monkeypatch.setattr(serving.importlib.util, "find_spec", lambda name: None if name == "torch" else find(name))


def test_the_server_names_the_way_out_on_windows_and_ends(windows, capsys):
    assert inference_server.__main__.main() == 1
    output = capsys.readouterr().err
    assert "does not run on Windows itself: use WSL 2 or Docker Desktop" in output and output.count("\n") == 1


def test_serve_names_it_before_it_looks_at_anything_else(windows):
    with pytest.raises(Failure, match="use WSL 2 or Docker Desktop"):
        serve(ServeOptions())


def test_the_pytest_plugin_names_the_variable_for_another_machine(windows, tmp_path):
    with pytest.raises(server.StartError, match="use WSL 2 or Docker Desktop.* set TAILRACE_URL"):
        server.shared(tmp_path, owner=1, models=(), settings={}, report=print)
    assert not list(tmp_path.iterdir())


def test_client_bridge_and_command_import_nothing_that_windows_lacks():
    done = subprocess.run([sys.executable, "-c", _AS_ON_WINDOWS], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "") and "usage: tailrace run" in done.stdout


@pytest.mark.parametrize(
    ("system", "machine", "words"),
    [
        ("darwin", "x86_64", "use a Python for arm64. On an Intel Mac, use Docker Desktop"),
        ("linux", "armv7l", "no package for armv7l processors: use a machine with a 64-bit x86 or Arm processor"),
        ("darwin", "arm64", r"pip install '\.\[server,bridge\]'"),
        ("linux", "aarch64", r"pip install '\.\[server,bridge\]'"),
    ],
)
def test_a_machine_without_torch_gets_the_reason(system, machine, words, without_torch, monkeypatch):
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr("platform.machine", lambda: machine)
    with pytest.raises(Failure, match=words):
        serve(ServeOptions())


def test_metal_is_refused_with_the_device_to_use_instead(monkeypatch):
    monkeypatch.setenv("TAILRACE_DEVICE", "mps")
    with pytest.raises(ConfigurationError, match=r"^TAILRACE_DEVICE=mps: .*\(Metal\): use cpu or auto"):
        Settings.from_environment()


def test_windows_alone_leaves_out_a_package():
    by_name = {platform.name: set(needed(platform.markers)) for platform in PLATFORMS}
    linux, windows = by_name["Linux x86_64"], by_name["Windows x86_64"]
    assert {"torch", "grpcio", "httpx2", "llvmlite", "bitsandbytes", "uvloop"} <= linux and "triton" not in linux
    assert by_name["macOS arm64"] == linux and linux - windows == {"uvloop"}
