"""The built wheel in virtual environments of its own: the client alone, and everything."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from importlib.metadata import PathDistribution
from pathlib import Path

import pytest

from tests.support.processes import ROOT

pytestmark = [pytest.mark.clients, pytest.mark.timeout(300)]
PROGRAM = ROOT / "tests" / "tailrace" / "typed_client.py"
MODEL = "@cf/meta/llama-2-7b-chat-int8"


def finished(*command: object, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=200, **options)


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """Build sdist and wheel with `make wheel`, in a folder without .venv. Returns the wheel."""
    folder = tmp_path_factory.mktemp("source")
    # Built from tracked files alone, so that other files of the working folder cannot enter the wheel.
    names = finished("git", "ls-files", "-z", cwd=ROOT, check=True).stdout.split("\0")
    for name in filter(None, names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, folder / name)
    finished("make", "wheel", f"PYTHON={sys.executable}", cwd=folder, check=True)
    assert not (folder / ".venv").exists()
    (wheel,) = (folder / "build").glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory) -> Path:
    """Install the wheel in an environment. Returns the folder of its commands."""
    environment = tmp_path_factory.mktemp("base") / "environment"
    finished(sys.executable, "-m", "venv", environment, check=True)
    finished(environment / "bin" / "pip", "install", "--quiet", built, check=True)
    return environment / "bin"


@pytest.fixture(scope="module")
def complete(built, tmp_path_factory) -> Path:
    """Install the wheel in an environment that has the packages of every extra. Returns the folder of its commands."""
    environment = tmp_path_factory.mktemp("complete") / "environment"
    finished(sys.executable, "-m", "venv", environment, check=True)
    finished(environment / "bin" / "pip", "install", "--quiet", "--no-deps", built, check=True)
    # The packages of this environment, without its editable Tailrace: site adds the folder, and reads no .pth file in it.
    (site,) = (environment / "lib").glob("python*/site-packages")
    packages = sysconfig.get_paths(vars={"base": sys.base_prefix})["purelib"]
    paths = [path for path in sys.path if path.endswith("site-packages")] or [packages]
    (site / "others.pth").write_text("\n".join(paths))
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
    grpc = {"grpcio", "grpcio-status", "protobuf", "googleapis-common-protos", "typing-extensions"}
    assert names == {"tailrace", *grpc, "httpx2", "httpcore2", "anyio", "h11", "idna", "truststore"}


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


def test_the_wheel_has_the_packages_with_their_files_and_nothing_else(built):
    with zipfile.ZipFile(built) as archive:
        names = archive.namelist()
    folders = {name.partition("/")[0] for name in names if ".dist-info" not in name}
    assert folders == {"tailrace", "tailrace_cli", "tailrace_shared", "inference_server", "http_bridge"}
    tracked = finished("git", "ls-files", *folders, cwd=ROOT, check=True).stdout.split()
    left_out = set(tracked) - set(names)
    assert not left_out and {"tailrace/py.typed", "tailrace-0.1.0.dist-info/licenses/LICENSE"} <= set(names)


def test_the_sdist_has_the_contract_and_no_tests(built):
    (sdist,) = built.parent.glob("*.tar.gz")
    names = finished("tar", "tzf", sdist, check=True).stdout.split()
    assert any(name.endswith("proto/tailrace/v1/inference.proto") for name in names)
    assert not any("/tests/" in name or "/benchmarks/" in name for name in names)


def test_the_extra_all_contains_what_serves(built, tmp_path):
    with zipfile.ZipFile(built) as archive:
        archive.extractall(tmp_path)
    metadata = PathDistribution(next(tmp_path.glob("*.dist-info"))).metadata
    (everything,) = [need for need in metadata.get_all("Requires-Dist") if need.endswith('extra == "all"')]
    assert set(re.findall(r"\w+", everything.partition("]")[0])) == {"tailrace", "server", "bridge", "traces"}


def test_a_users_program_has_complete_types(installed, tmp_path):
    # Away from this repository, so that mypy finds the installed package.
    program = shutil.copy(PROGRAM, tmp_path)
    options = ["--strict", "--python-executable", installed / "python", "--cache-dir", tmp_path / "cache"]
    done = finished(sys.executable, "-m", "mypy", *options, "--config-file", os.devnull, program, cwd=tmp_path)
    assert done.stdout == "Success: no issues found in 1 source file\n"


@pytest.mark.parametrize("door", ["rest", "grpc"])
def test_the_same_program_runs_through_each_door(installed, stack, tmp_path, door):
    url = f"http://{stack.http_address}" if door == "rest" else f"grpc://{stack.grpc_address}"
    done = finished(installed / "python", PROGRAM, url, cwd=tmp_path, env={"PATH": os.defpath, "HOME": str(tmp_path)})
    assert done.stderr == ""
    answer, streamed, refused, vectors = done.stdout.splitlines()
    assert answer.startswith("The capital of Japan is Tokyo") and "stop" in answer
    assert "length 8" in streamed
    assert (refused, vectors.startswith("[1, 2, ")) == ("UNKNOWN_MODEL True", True)


@pytest.mark.parametrize("number", range(4))
def test_the_documented_programs_run(installed, stack, tmp_path, number):
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "python.md").read_text(), re.MULTILINE | re.DOTALL)
    programs = [block.replace("127.0.0.1:8787", stack.http_address) for block in blocks if "def test_" not in block]
    assert len(programs) == 4
    environment = {"PATH": os.defpath, "HOME": str(tmp_path), "TAILRACE_URL": f"http://{stack.http_address}"}
    done = finished(installed / "python", "-c", programs[number], cwd=tmp_path, env=environment)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout


def test_the_plugin_starts_one_server_for_all_workers(complete, tmp_path):
    for name in ("one", "two"):
        (tmp_path / f"test_{name}.py").write_text(
            "def test_reply(tailrace_client, tailrace_server):\n"
            "    reply = tailrace_client.run('What is the capital of Japan?', temperature=0, max_tokens=12)\n"
            "    print('\\nserver', tailrace_server.url)\n"
            "    assert 'Tokyo' in reply.text and tailrace_server.log.exists()\n"
        )
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("TAILRACE_", "PYTEST_"))}
    environment |= {"OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
    options = ["-n", "2", "-rP", "-p", "no:cacheprovider", "--tailrace-model", "smollm2-135m-instruct"]
    done = finished(complete / "python", "-m", "pytest", *options, cwd=tmp_path, env=environment)
    assert "2 passed" in done.stdout, done.stdout
    assert len(set(re.findall(r"^server (.+)$", done.stdout, re.MULTILINE))) == 1
    # The folder with the log is deleted once the server has ended.
    assert not list(tmp_path.glob("tailrace-pytest-*"))
