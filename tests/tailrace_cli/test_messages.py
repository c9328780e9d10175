"""Errors of the command end in one sentence and a non-zero exit code, never in a traceback."""

import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from tests.support.processes import ROOT
from tests.tailrace_cli.command import tailrace


def assert_sentence(done, *parts):
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1 and "Traceback" not in done.stderr
    for part in parts:
        assert part in done.stderr


@pytest.mark.parametrize("command", [["serve"], ["models"], ["run", "m", "hi"], ["chat"]])
def test_wrong_bridge_address_names_variable_and_form(environment, command):
    done = tailrace(*command, environment=environment | {"TAILRACE_HTTP_ADDRESS": "foo"})
    assert_sentence(done, "TAILRACE_HTTP_ADDRESS=foo: it is not host:port")


@pytest.mark.parametrize("url", ["localhost:8787", "http://", "http://host:port", "http://[::1"])
def test_wrong_url_is_named(environment, url):
    assert_sentence(tailrace("models", "--url", url, environment=environment), f"{url} is not the URL of a bridge")


def test_url_of_a_grpc_server_is_named(environment):
    server = grpc.server(ThreadPoolExecutor(1))
    url = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        done = tailrace("models", "--url", url, environment=environment)
    finally:
        server.stop(None).wait()
    assert_sentence(done, f"{url} does not speak HTTP/1.1; is it the gRPC address?")


def test_serve_refuses_a_misspelt_protective_variable(environment):
    done = tailrace("serve", environment=environment | {"TAILRACE_API_TOKEN": "secret"})
    assert_sentence(done, "did you mean TAILRACE_API_TOKENS?")
    assert "secret" not in done.stderr


def test_serve_reports_another_misspelt_variable_once(environment):
    """The catalog stops the start of the server, which ends the command."""
    given = {"TAILRACE_PROFIL": "2026", "TAILRACE_CATALOG": "missing.toml"}
    done = tailrace("serve", environment=environment | given)
    assert done.returncode == 1
    assert done.stderr.count("TAILRACE_PROFIL is not a setting of Tailrace (did you mean TAILRACE_PROFILE?)") == 1


@pytest.mark.parametrize(
    ("name", "other"),
    [("TAILRACE_GRPC_ADDRESS", "TAILRACE_HTTP_ADDRESS"), ("TAILRACE_HTTP_ADDRESS", "TAILRACE_GRPC_ADDRESS")],
)
@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_serve_refuses_an_address_that_is_in_use(environment, name, other, host):
    with socket.create_server((host, 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        done = tailrace("serve", environment=environment | {name: address})
    port = address.rpartition(":")[2]
    assert_sentence(done, f"Port {port} ({name}={address}) is in use already, by python")
    assert_sentence(done, f"Set {name} to another address, for example 127.0.0.1:")
    assert_sentence(done, f" A second stack needs another {other} too.")


@pytest.mark.parametrize("command", [["token", "acme"], ["doctor"]])
def test_full_disk_is_an_error(environment, command):
    with open("/dev/full", "w") as full:
        done = tailrace(*command, environment=environment, stdout=full)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "Cannot write to standard output: No space left on device."
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr


@pytest.mark.parametrize("command", [["token", "acme"], ["models"], ["doctor"], ["run", "m", "hi"], ["chat"]])
def test_closed_standard_output_is_an_error(environment, command):
    words = [sys.executable, "-m", "tailrace_cli", *command]
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" >&-', "sh", *words], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
    )
    assert_sentence(done, "Standard output is closed")


def test_help_documents_the_variables_of_the_client(environment):
    text = tailrace("--help", environment=environment).stdout
    assert "TAILRACE_URL " in text and "TAILRACE_TOKEN " in text
