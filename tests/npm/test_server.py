"""The server behind `tailrace dev`: found or started, stopped with the command whatever ends it, and never left behind."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest
import requests

from tests.clients.node_programs import node_folder
from tests.npm.support import wait_until
from tests.prose import tracked
from tests.support.processes import ROOT, free_address

pytestmark = pytest.mark.npm

DEV = ("tailrace", "dev", "--port", "PORT")
MODULES = {"tailrace_cli", "inference_server", "http_bridge"}


def marked(mark):
    """Return the command lines of the processes with a mark in their environment, which children inherit."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("MARK") == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline()))
        except psutil.Error:  # it has ended meanwhile
            continue
    return found


def services(mark):
    """Return the modules of the server's processes that run."""
    lines = marked(mark)
    return {module for module in MODULES if any(f"-m {module}" in line for line in lines)}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_started_server_ends_with_the_command(new_project, starting, stack, number):
    mark = starting["MARK"]
    with new_project.serving(*DEV, **starting) as running:
        assert "Tokyo" in running.get("run").json()["reply"]["response"]
        assert services(mark) == MODULES
        (ready,) = re.findall(r"Tailrace is ready at (\S+) after [\d.]+ s", running.output())
        assert not ready.endswith(":8787") and running.stop(number) is not None
        wait_until(lambda: services(mark) == set())
    wait_until(lambda: marked(mark) == [])
    assert requests.get(f"http://{stack.http_address}/readyz", timeout=10).status_code == 200
    if number == signal.SIGKILL:
        assert len(new_project.copies()) == 1
        new_project.run(
            "tailrace", "dev", "--", "wrangler", "dev", "--help", TAILRACE_URL=f"http://{stack.http_address}"
        )
    assert new_project.copies() == []


@pytest.mark.parametrize(
    "command",
    [
        ("npx", "--offline", "tailrace", "dev", "--port", "PORT"),
        ("tailrace", "dev", "--", "npm", "run", "dev", "--", "--port", "PORT"),
    ],
    ids=["tailrace below npx", "wrangler below npm"],
)
def test_a_package_manager_leaves_no_process(new_project, url, command):
    mark = str(new_project.folder)
    (new_project.folder / "package.json").write_text('{ "type": "module", "scripts": { "dev": "wrangler dev" } }')
    with new_project.serving(*command, TAILRACE_URL=url, MARK=mark) as running:
        assert any("workerd serve" in line for line in marked(mark))
        running.stop(signal.SIGTERM)
        wait_until(lambda: marked(mark) == [])
    assert new_project.copies() == []


def test_a_signal_during_the_start_leaves_nothing(new_project, starting):
    mark = starting["MARK"]
    process = subprocess.Popen(["tailrace", "dev"], cwd=new_project.folder, env=new_project.environment(**starting))
    wait_until(lambda: "tailrace_cli" in services(mark))
    process.terminate()
    assert process.wait(30) == 128 + signal.SIGTERM
    assert marked(mark) == [] and new_project.copies() == []


def test_a_server_that_cannot_start_is_reported_with_its_last_lines(new_project, starting):
    done = new_project.run("tailrace", "dev", **{**starting, "TAILRACE_CATALOG": "/no/such/catalog.toml"})
    assert done.code == 1 and "tailrace: The Tailrace server ended with code 1:" in done.output
    assert "/no/such/catalog.toml" in done.output and "    at " not in done.output
    assert new_project.copies() == []


def test_without_any_server_the_ways_to_start_one_are_listed(new_project):
    taken = is_taken(8787)
    done = new_project.run("tailrace", "dev", PATH=str(node_only(new_project)))
    if not taken:
        assert done.code == 1 and "TAILRACE_PYTHON_PACKAGE" in done.output and "make run" in done.output
    assert new_project.copies() == []


@pytest.mark.parametrize("source", ["build/tailrace-0.1.0.tgz", "npm"])
def test_the_clone_that_the_package_came_from_starts_the_server(new_project, source):
    clone = new_project.folder / "clone"
    command = clone / ".venv" / "bin" / "tailrace"
    for folder in (clone / "tailrace_cli", command.parent):
        folder.mkdir(parents=True)
    (clone / "pyproject.toml").touch()
    command.write_text("#!/bin/sh\nexit 3\n")
    command.chmod(0o755)
    manifest = {"type": "module", "devDependencies": {"tailrace": f"file:clone/{source}"}}
    (new_project.folder / "package.json").write_text(json.dumps(manifest))
    taken = is_taken(8787)
    done = new_project.run("tailrace", "dev", PATH=str(node_only(new_project)))
    if not taken:
        assert done.code == 1 and str(command) in done.output and "ended with code 3" in done.output


def test_an_address_without_a_server_is_one_sentence(new_project):
    address = free_address()
    done = new_project.run("tailrace", "dev", TAILRACE_URL=f"http://{address}")
    assert done.code == 1 and f"no Tailrace server at http://{address}: nothing listens there" in done.output
    with other_program() as url:
        done = new_project.run("tailrace", "dev", TAILRACE_URL=url)
    assert done.code == 1 and "another program listens there" in done.output
    with socket.create_server(("127.0.0.1", 0)) as silent:
        done = new_project.run("tailrace", "dev", TAILRACE_URL=f"http://127.0.0.1:{silent.getsockname()[1]}")
    assert done.code == 1 and "it does not answer in 2 s" in done.output


def test_a_container_gets_the_token_of_the_call(new_project, tmp_path):
    """No engine is needed: the program `docker` here reports the variable that it would pass on."""
    path = node_only(new_project)
    (path / "docker").write_text('#!/bin/sh\n[ "$1" = image ] || { echo "token: $TAILRACE_API_TOKENS"; exit 3; }\n')
    (path / "docker").chmod(0o755)
    (path / "sh").symlink_to("/bin/sh")
    start = 'import("tailrace/server").then((module) => module.startServer({ token: "own", quiet: true }))'
    if is_taken(8787):
        pytest.skip("another server listens on port 8787")
    done = new_project.run("node", "-e", f"{start}.catch((error) => console.log(error.message))", PATH=str(path))
    assert "ended with code 3" in done.output and "token: own" in done.output


# A program `docker` for machines without the engine. It runs the server of this repository as a container would run.
DOCKER = """#!/bin/sh
[ "$1" = image ] && exit 0
[ "$1" = rm ] && {{ echo "$3" >> {folder}/removed; exit 0; }}
echo "$@" > {folder}/run
while [ "$1" != --publish ]; do shift; done
export TAILRACE_HTTP_ADDRESS="${{2%:8787}}" TAILRACE_GRPC_ADDRESS=127.0.0.1:0
exec {python} -m tailrace_cli serve
"""


def has_image():
    """Return whether Docker's engine runs here and has the image."""
    docker = shutil.which("docker")
    done = docker and subprocess.run([docker, "image", "inspect", "tailrace"], capture_output=True, timeout=30)
    return bool(done) and done.returncode == 0


def test_the_local_image_starts_with_the_settings_of_the_call_and_its_container_is_removed(new_project, starting):
    """Without the engine, or without the image, a program `docker` of the test takes their place."""
    if is_taken(8787):
        pytest.skip("another server listens on port 8787")
    path, is_real = node_only(new_project), has_image()
    folder = new_project.folder / "recordings"
    settings = {"TAILRACE_RECORDINGS": "recordings", "TAILRACE_RECORDINGS_MODE": "auto", "MARK": starting["MARK"]}
    if is_real:
        (path / "docker").symlink_to(shutil.which("docker"))
    else:
        settings |= {name: starting[name] for name in ("TAILRACE_CATALOG", "OMP_NUM_THREADS")}
        (path / "docker").write_text(DOCKER.format(folder=path, python=sys.executable))
        (path / "docker").chmod(0o755)
        (path / "sh").symlink_to("/bin/sh")
    url = "process.env.TAILRACE_URL + '/client/v4/accounts/local/ai/run/@cf/meta/llama-2-7b-chat-int8'"
    headers = "{ authorization: 'Bearer ' + process.env.TAILRACE_TOKEN }"
    body = "JSON.stringify({ prompt: 'hi', max_tokens: 2 })"
    program = f"fetch({url}, {{ method: 'POST', headers: {headers}, body: {body} }})"
    program += ".then(async (reply) => console.log(await reply.text()))"
    done = new_project.run("tailrace", "dev", "--", "node", "-e", program, PATH=str(path), **settings)
    assert done.code == 0 and '"response"' in done.output and "(the Docker image tailrace)" in done.output, done.output
    assert len(list(folder.glob("llama-2-7b-chat-int8.hi.*.json"))) == 1
    wait_until(lambda: marked(starting["MARK"]) == [])
    if not is_real:
        words = (path / "run").read_text().split()
        assert (path / "removed").read_text().split() == [words[words.index("--name") + 1]]
        assert f"type=bind,source={folder},target={folder}" in words and words[-1] == "tailrace"
        assert "TAILRACE_RECORDINGS_MODE" in words and "TAILRACE_HTTP_ADDRESS" not in words


def test_a_wheel_is_installed_into_an_environment_of_its_own_once(new_project, starting, tmp_path):
    wheels = tmp_path / "wheels"
    source = copied_source(tmp_path / "source")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(wheels), str(source)]
    subprocess.run(pip, check=True, timeout=100)
    (wheel,) = wheels.glob("*.whl")
    # The requirements are this environment's, so that nothing is downloaded.
    packages = [path for path in sys.path if path.endswith("site-packages")]
    settings = {name: value for name, value in starting.items() if name != "TAILRACE_COMMAND"} | {
        "TAILRACE_PYTHON_PACKAGE": str(wheel),
        "PIP_NO_DEPS": "1",
        "PYTHONPATH": os.pathsep.join(packages),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }
    path = node_only(new_project)
    (path / "python3").symlink_to(Path(sys.executable).resolve())
    command = (
        "tailrace",
        "dev",
        "--",
        "node",
        "-e",
        "fetch(process.env.TAILRACE_URL + '/readyz').then((r) => process.exit(r.status - 193))",
    )
    first = new_project.run(*command, PATH=str(path), **settings)
    assert first.code == 7 and "Installing Tailrace" in first.output, first.output
    # A second server would start in the same way: this one fails immediately.
    second = new_project.run(*command, PATH=str(path), **{**settings, "TAILRACE_CATALOG": "/no/such/catalog.toml"})
    assert second.code == 1 and "Installing" not in second.output and "virtual environment in" in second.output
    wait_until(lambda: marked(starting["MARK"]) == [])


def copied_source(folder):
    """Copy the repository without tests and documents. A build in the repository itself would leave files there."""
    for path in tracked(ROOT):
        if not path.startswith(("tests/", "docs/", "npm/", "benchmarks/")):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / path, folder / path)
    return folder


def node_only(project):
    """Return a folder with the only programs that a command finds."""
    folder = project.home / "only"
    folder.mkdir(exist_ok=True)
    (folder / "node").symlink_to(node_folder() / "node")
    (folder / "tailrace").symlink_to(project.folder / "node_modules" / ".bin" / "tailrace")
    return folder


def is_taken(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class other_program:
    """A web server that is not Tailrace, and answers everything with 200."""

    def __enter__(self):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200)
                self.end_headers()
                self.wfile.write(b"hello")

            def log_message(self, *values):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self.server.server_port}"

    def __exit__(self, *error):
        self.server.shutdown()
        self.server.server_close()
