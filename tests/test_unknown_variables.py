"""Misspelt environment variables are reported by both services."""

import logging
import subprocess
import sys

import pytest

from http_bridge.settings import bridge
from inference_server.settings import server
from tailrace_shared.config_errors import ConfigurationError
from tailrace_shared.variables import SETTINGS, check_variables, unknown_variables
from tests.support.processes import ROOT

logger = logging.getLogger("test")


def test_the_table_has_the_fields_of_both_settings_classes():
    fields = {*server.Settings.model_fields, *bridge.Settings.model_fields}
    assert sorted(name.upper() for name in fields) == list(SETTINGS)


def test_an_unknown_variable_is_reported_with_the_nearest_name():
    (variable,) = unknown_variables({"TAILRACE_MAX_RUNING_SEQS": "1", "PATH": "", "TAILRACE_DEVICE": "cpu"})
    assert (variable.name, variable.nearest) == ("TAILRACE_MAX_RUNING_SEQS", "TAILRACE_MAX_RUNNING_SEQS")
    assert "did you mean TAILRACE_MAX_RUNNING_SEQS?" in str(variable)


def test_a_variable_without_a_similar_one_is_reported_too():
    (variable,) = unknown_variables({"TAILRACE_XYZZY": ""})
    assert variable.nearest is None


@pytest.mark.parametrize(
    "name",
    [
        "TAILRACE_SERVER_SERVICE_HOST",
        "TAILRACE_SERVER_SERVICE_PORT_GRPC",
        "TAILRACE_SERVER_PORT_50051_TCP_ADDR",
        "TAILRACE_PORT",
    ],
)
def test_variables_that_kubernetes_adds_are_ignored(name):
    assert unknown_variables({name: "tcp://10.0.0.1:50051"}) == []


def test_a_misspelt_setting_is_a_warning_without_its_value(caplog):
    check_variables(logger, {"TAILRACE_PROFIL": "2026"})
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "TAILRACE_PROFILE" in record.message and "2026" not in record.message


def test_a_misspelt_count_of_tokens_is_a_warning(caplog):
    check_variables(logger, {"TAILRACE_KV_CACHE_TOKEN": "4096"})
    assert "TAILRACE_KV_CACHE_TOKENS" in caplog.text


def test_a_misspelt_protective_setting_stops_the_start():
    with pytest.raises(ConfigurationError, match="did you mean TAILRACE_API_TOKENS") as caught:
        check_variables(logger, {"TAILRACE_API_TOKEN": "secret"})
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("service", ["inference_server", "http_bridge"])
def test_both_services_refuse_to_start_with_a_misspelt_token_variable(service, monkeypatch):
    monkeypatch.setenv("TAILRACE_API_TOKEN", "secret")
    done = subprocess.run(
        [sys.executable, "-m", service], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert "TAILRACE_API_TOKENS" in done.stderr and "Traceback" not in done.stderr
