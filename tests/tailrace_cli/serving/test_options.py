"""Options of `tailrace serve` become settings, and the command line of `tailrace` as users write it."""

import typing

import pytest

from inference_server.precision import Precision
from tailrace_cli import parser
from tailrace_cli.__main__ import _COMMANDS
from tailrace_cli.errors import Failure
from tailrace_cli.serving import options
from tailrace_cli.serving.options import ServeOptions, settings_of

ADDRESSES = ("TAILRACE_HTTP_ADDRESS", "TAILRACE_GRPC_ADDRESS")


@pytest.fixture(autouse=True)
def _no_addresses(monkeypatch):
    for name in ADDRESSES:
        monkeypatch.delenv(name, raising=False)


def parsed(monkeypatch, *words):
    monkeypatch.setattr("sys.argv", ["tailrace", *words])
    return parser.parse(_COMMANDS)


def test_every_option_sets_its_variable():
    given = ServeOptions(
        models=("a/b", "./c"), catalog="x.toml", device="cpu", precision="int4", max_context=100, host="0.0.0.0"
    )
    assert settings_of(given) == {
        "TAILRACE_MODELS": "a/b,./c",
        "TAILRACE_CATALOG": "x.toml",
        "TAILRACE_DEVICE": "cpu",
        "TAILRACE_PRECISION": "int4",
        "TAILRACE_MAX_CONTEXT": "100",
        "TAILRACE_HTTP_ADDRESS": "0.0.0.0:8787",
    }
    assert settings_of(ServeOptions()) == {}


def test_host_and_port_replace_a_part_of_the_address(monkeypatch):
    monkeypatch.setenv("TAILRACE_HTTP_ADDRESS", "127.0.0.2:9000")
    monkeypatch.setenv("TAILRACE_GRPC_ADDRESS", "127.0.0.1:1")
    assert settings_of(ServeOptions(port=0)) == {"TAILRACE_HTTP_ADDRESS": "127.0.0.2:0"}
    assert settings_of(ServeOptions(host="::1")) == {"TAILRACE_HTTP_ADDRESS": "[::1]:9000"}
    monkeypatch.setenv("TAILRACE_HTTP_ADDRESS", "foo")
    with pytest.raises(Failure, match="TAILRACE_HTTP_ADDRESS=foo: it is not host:port"):
        settings_of(ServeOptions(port=1))


def test_a_second_stack_with_another_port_gets_a_free_grpc_port(monkeypatch):
    monkeypatch.setattr(options, "_is_free", lambda address: False)
    assert settings_of(ServeOptions(port=9000))["TAILRACE_GRPC_ADDRESS"] == "localhost:0"
    monkeypatch.setattr(options, "_is_free", lambda address: True)
    assert "TAILRACE_GRPC_ADDRESS" not in settings_of(ServeOptions(port=9000))
    assert settings_of(ServeOptions(port=0))["TAILRACE_GRPC_ADDRESS"] == "localhost:0"


def test_a_model_with_a_comma_is_refused():
    with pytest.raises(Failure, match=r"^a,b contains a comma"):
        settings_of(ServeOptions(models=("a,b",)))


def test_precisions_of_the_option_are_those_of_the_server():
    assert typing.get_args(Precision) == parser._PRECISIONS


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        (["run", "m", "--stats", "hello", "--seed", "3", "you"], "words", ["m", "hello", "you"]),
        (["run", "--stop", "a", "m", "x", "--stop", "b"], "stop", ["a", "b"]),
        (["serve", "a/b", "--port", "0", "c/d"], "models", ["a/b", "c/d"]),
        (["run", "-m", "m", "-"], "words", ["-"]),
    ],
)
def test_options_may_stand_between_words(monkeypatch, words, name, value):
    assert getattr(parsed(monkeypatch, *words), name) == value


@pytest.mark.parametrize(
    "words",
    [
        ["run", "m", "hello", "--wrong"],
        ["models", "x"],
        ["serve", "--port", "70000"],
        ["rm"],
        ["run", "m", "hello", "--temperature", "9"],
        ["run", "m", "hello", "--top-p", "nan"],
        ["completion", "csh"],
    ],
)
def test_a_wrong_command_line_is_a_usage_error(monkeypatch, words, capsys):
    with pytest.raises(SystemExit) as caught:
        parsed(monkeypatch, *words)
    assert caught.value.code == 2 and "usage: tailrace" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["", *_COMMANDS])
def test_every_help_fits_into_80_columns(monkeypatch, capsys, command):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as caught:
        parsed(monkeypatch, *filter(None, [command]), "--help")
    lines = capsys.readouterr().out.splitlines()
    assert caught.value.code == 0
    assert max(map(len, lines)) <= 80 and (not command or "example" in "\n".join(lines))


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completion_script_names_commands_and_options(monkeypatch, capsys, shell):
    pytest.importorskip("shtab")
    options = parsed(monkeypatch, "completion", shell)
    assert options.command(options) == 0
    text = capsys.readouterr().out
    assert "chat" in text and "max-tokens" in text
