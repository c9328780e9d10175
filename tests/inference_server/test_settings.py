"""Settings: values from the environment, and the messages for wrong ones."""

import re
from pathlib import Path

import pytest

from inference_server.kernels.isa import choice, cpu
from inference_server.settings.models import DEFAULT_CATALOG
from inference_server.settings.scheduling import PrefillTokens
from inference_server.settings.server import Settings
from tailrace_shared.config_errors import ConfigurationError

# An instruction set of another architecture than this CPU's.
FOREIGN = "neon" if cpu.is_x86() else "avx2"


@pytest.fixture(autouse=True)
def empty_environment(monkeypatch):
    for name in Settings.model_fields:
        monkeypatch.delenv(f"TAILRACE_{name.upper()}", raising=False)


def settings(monkeypatch, **variables):
    for name, value in variables.items():
        monkeypatch.setenv(f"TAILRACE_{name}", value)
    return Settings.from_environment()


def _raise_import_error():
    raise ImportError("no module")


def complaint(monkeypatch, **variables):
    with pytest.raises(ConfigurationError) as caught:
        settings(monkeypatch, **variables)
    return str(caught.value)


def test_defaults_listen_on_loopback_and_load_the_default_catalog(monkeypatch):
    given = settings(monkeypatch)
    assert given.grpc_address == "localhost:50051"
    assert given.catalog == DEFAULT_CATALOG
    assert given.device == "auto"
    assert given.kv_cache_tokens is None
    assert (given.int8_threshold, given.raw_control_tokens) == (0.0, False)


def test_every_setting_is_read_from_its_variable(monkeypatch):
    given = settings(
        monkeypatch,
        GRPC_ADDRESS="[::]:0",
        GRPC_HEALTH_ADDRESS="127.0.0.1:50052",
        GRPC_CONNECTION_AGE_SECONDS="60",
        GRPC_TLS_CERT="/etc/tls/server.crt",
        GRPC_TLS_KEY="/etc/tls/server.key",
        GRPC_TLS_CLIENT_CA="/etc/tls/clients.pem",
        GRPC_TOKENS_FILE="/etc/tokens",
        CATALOG="/etc/models.toml",
        MODELS="Qwen/Qwen3-0.6B, ./folder",
        PRECISION="int4",
        MAX_CONTEXT="4096",
        CACHE_DIR="/var/cache/models",
        DEVICE="cpu",
        CPU_FEATURES="None",
        MAX_RUNNING_SEQS="8",
        MAX_WAITING_SEQS="0",
        MAX_WAITING_TOKENS="9000",
        MAX_ACCOUNT_SEQS="2",
        MAX_BATCH_SEQS="3",
        ACCOUNT_REQUESTS_PER_MINUTE="60",
        KV_CACHE_TOKENS="50000",
        PREFIX_CACHE="account",
        PREFIX_CACHE_TOKENS="0",
        PREFILL_CHUNK_TOKENS="96",
        PREFILL_IDLE_TOKENS="1024",
        BATCH_INVARIANT="true",
        INT8_THRESHOLD="6.0",
        RAW_CONTROL_TOKENS="true",
        RECORDINGS="recordings",
        RECORDINGS_MODE="auto",
        MAX_MESSAGE_BYTES="2048",
        MAX_MESSAGES="12",
        MAX_SCHEMA_DEPTH="5",
        SHUTDOWN_GRACE_SECONDS="0.5",
        WRITE_TIMEOUT_SECONDS="5",
        STALL_SECONDS="7",
        STALL_EXIT_SECONDS="8",
        METRICS_ADDRESS="127.0.0.1:9100",
        LOG_FORMAT="json",
        LOG_LEVEL="debug",
    )
    assert given == Settings(
        grpc_address="[::]:0",
        grpc_health_address="127.0.0.1:50052",
        grpc_connection_age_seconds=60.0,
        grpc_tls_cert=Path("/etc/tls/server.crt"),
        grpc_tls_key=Path("/etc/tls/server.key"),
        grpc_tls_client_ca=Path("/etc/tls/clients.pem"),
        grpc_tokens_file=Path("/etc/tokens"),
        catalog=Path("/etc/models.toml"),
        models="Qwen/Qwen3-0.6B, ./folder",
        precision="int4",
        max_context=4096,
        cache_dir=Path("/var/cache/models"),
        device="cpu",
        cpu_features="none",
        max_running_seqs=8,
        max_waiting_seqs=0,
        max_waiting_tokens=9000,
        max_account_seqs=2,
        max_batch_seqs=3,
        account_requests_per_minute=60,
        kv_cache_tokens=50_000,
        prefix_cache="account",
        prefix_cache_tokens=0,
        prefill_chunk_tokens=96,
        prefill_idle_tokens=1024,
        batch_invariant=True,
        int8_threshold=6.0,
        raw_control_tokens=True,
        max_message_bytes=2048,
        max_messages=12,
        max_schema_depth=5,
        shutdown_grace_seconds=0.5,
        write_timeout_seconds=5,
        stall_seconds=7,
        stall_exit_seconds=8,
        metrics_address="127.0.0.1:9100",
        log_format="json",
        log_level="debug",
    )
    defaults = Settings.model_construct().model_dump()
    # Other settings above contradict deterministic mode, which a test below switches on.
    assert [name for name, value in given.model_dump().items() if value == defaults[name]] == ["deterministic"]


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("GRPC_ADDRESS", "50051", "it is not host:port, for example"),
        ("GRPC_ADDRESS", ":50051", "it is not host:port"),
        ("GRPC_ADDRESS", "localhost:", "its port is not a number"),
        ("GRPC_ADDRESS", "localhost:grpc", "its port is not a number"),
        ("GRPC_ADDRESS", "localhost:65536", "its port is not a number"),
        ("GRPC_ADDRESS", "localhost:-1", "its port is not a number"),
        ("GRPC_HEALTH_ADDRESS", "50052", "it is not host:port"),
        ("DEVICE", "tpu", "'auto', 'cpu' or 'cuda'"),
        ("CPU_FEATURES", "avx3", "there is no instruction set of this name (possible here: "),
        ("CPU_FEATURES", FOREIGN, "this CPU lacks this instruction set (possible here: "),
        ("MAX_RUNNING_SEQS", "0", "greater than or equal to 1"),
        ("MAX_RUNNING_SEQS", "1025", "less than or equal to 1024"),
        ("MAX_RUNNING_SEQS", "many", "valid integer"),
        ("MAX_WAITING_SEQS", "-1", "greater than or equal to 0"),
        ("KV_CACHE_TOKENS", "0", "greater than or equal to 1"),
        ("PREFILL_CHUNK_TOKENS", "0", "greater than or equal to 1"),
        ("PREFILL_CHUNK_TOKENS", "8193", "less than or equal to 8192"),
        ("INT8_THRESHOLD", "-0.1", "greater than or equal to 0"),
        ("INT8_THRESHOLD", "nan", "greater than or equal to 0"),
        ("RAW_CONTROL_TOKENS", "perhaps", "valid boolean"),
        ("MAX_MESSAGE_BYTES", "1023", "greater than or equal to 1024"),
        ("SHUTDOWN_GRACE_SECONDS", "-1", "greater than or equal to 0"),
        ("LOG_LEVEL", "loud", "'debug', 'info', 'warning' or 'error'"),
    ],
)
def test_a_wrong_value_is_named_with_its_variable(monkeypatch, name, value, reason):
    message = complaint(monkeypatch, **{name: value})
    assert message.startswith(f"TAILRACE_{name}={value}: ")
    assert reason in message
    assert "\n" not in message


def test_all_wrong_values_are_named_together(monkeypatch):
    message = complaint(monkeypatch, DEVICE="tpu", LOG_LEVEL="loud", MAX_RUNNING_SEQS="0")
    assert [part.split("=")[0] for part in message.split("; ")] == [
        "TAILRACE_DEVICE",
        "TAILRACE_MAX_RUNNING_SEQS",
        "TAILRACE_LOG_LEVEL",
    ]


@pytest.mark.parametrize("name", ["GRPC_TLS_CERT", "GRPC_TLS_KEY", "GRPC_TLS_CLIENT_CA"])
def test_incomplete_tls_settings_are_reported(monkeypatch, name):
    message = complaint(monkeypatch, **{name: "/etc/tls/file"})
    assert message.startswith("TAILRACE_GRPC_TLS_C") and "TAILRACE_GRPC_TLS_KEY" in message


def test_variables_of_other_programs_are_ignored(monkeypatch):
    monkeypatch.setenv("DEVICE", "tpu")
    assert settings(monkeypatch, HTTP_ADDRESS="not read here") == Settings()


def test_the_cache_follows_the_convention_of_the_desktop(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/tmp/caches")
    assert settings(monkeypatch).cache_dir == Path("/var/tmp/caches/tailrace")


@pytest.mark.parametrize("unset", [True, False], ids=["unset", "empty"])
def test_the_cache_is_in_the_home_folder_by_default(monkeypatch, unset):
    monkeypatch.setenv("HOME", "/home/user")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    if unset:
        monkeypatch.delenv("XDG_CACHE_HOME")
    assert settings(monkeypatch).cache_dir == Path("/home/user/.cache/tailrace")


def test_the_description_lists_every_instruction_set():
    description = Settings.model_fields["cpu_features"].description
    assert all(re.search(rf"\b{name}[ ,]", description) for name in choice.NAMES)


def test_an_instruction_set_cannot_be_chosen_without_the_compiler(monkeypatch):
    monkeypatch.setattr(choice, "available", lambda: ())
    monkeypatch.setattr(cpu, "is_x86", _raise_import_error)
    assert complaint(monkeypatch, CPU_FEATURES="avx2") == (
        "TAILRACE_CPU_FEATURES=avx2: only none is possible, because llvmlite, which compiles the kernels, is not installed"
    )


def test_settings_cannot_be_changed(monkeypatch):
    with pytest.raises(ValueError, match="frozen"):
        settings(monkeypatch).device = "cuda"


def test_empty_variables_are_unset(monkeypatch):
    assert settings(monkeypatch, KV_CACHE_TOKENS="", DEVICE="", CACHE_DIR="") == Settings()


@pytest.mark.parametrize(
    ("device", "given", "chunk", "idle"),
    [
        ("cpu", {}, 64, 512),
        ("cuda", {}, 512, 2048),
        ("cuda", {"PREFILL_CHUNK_TOKENS": "32"}, 32, 2048),
        ("cpu", {"PREFILL_IDLE_TOKENS": "128"}, 64, 128),
        ("cpu", {"PREFILL_CHUNK_TOKENS": "700"}, 700, 700),
    ],
)
def test_prompt_tokens_of_a_step_depend_on_the_device_unless_set(monkeypatch, device, given, chunk, idle):
    assert settings(monkeypatch, **given).prefill_tokens(device) == PrefillTokens(chunk, idle)


def test_deterministic_mode_switches_what_it_needs(monkeypatch):
    given = settings(monkeypatch, DETERMINISTIC="true", PREFIX_CACHE="off")
    assert (given.batch_invariant, given.prefix_cache) == (True, "off")
    assert not settings(monkeypatch, DETERMINISTIC="false").batch_invariant


@pytest.mark.parametrize(
    ("name", "value"), [("BATCH_INVARIANT", "false"), ("PREFIX_CACHE", "shared"), ("INT8_THRESHOLD", "6")]
)
def test_settings_that_contradict_deterministic_mode_are_refused(monkeypatch, name, value):
    sentence = complaint(monkeypatch, DETERMINISTIC="1", **{name: value})
    assert sentence.startswith("TAILRACE_DETERMINISTIC ") and f"TAILRACE_{name}" in sentence


@pytest.mark.parametrize(("mode", "replays"), [("", True), ("replay", True), ("record", False), ("auto", False)])
def test_only_the_mode_replay_needs_no_model(monkeypatch, mode, replays):
    assert settings(monkeypatch, RECORDINGS="folder", RECORDINGS_MODE=mode).replays_only is replays
    assert not settings(monkeypatch, RECORDINGS="", RECORDINGS_MODE=mode).replays_only
