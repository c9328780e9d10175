"""The text that `tailrace serve` prints once both services are ready, and its signals."""

import io
import logging
import signal
import sys

import pytest

from tailrace_cli.client import ModelLine
from tailrace_cli.serving import announcement, serve


@pytest.mark.parametrize(
    ("name", "token"),
    [
        ("TAILRACE_API_TOKENS", "$TAILRACE_TOKEN"),
        ("TAILRACE_API_TOKENS_FILE", "$TAILRACE_TOKEN"),
        ("TAILRACE_URL", "any-token"),
    ],
)
def test_curl_reads_the_token_from_the_variable_of_the_command(monkeypatch, capsys, name, token):
    for each in ("TAILRACE_API_TOKENS", "TAILRACE_API_TOKENS_FILE"):
        monkeypatch.delenv(each, raising=False)
    monkeypatch.setenv(name, "value")
    monkeypatch.setattr(announcement, "_served", lambda: [])
    announcement.announce("127.0.0.1:8787", 1.0)
    text = capsys.readouterr().out
    assert f'-H "Authorization: Bearer {token}"' in text
    assert f"/accounts/{'$TAILRACE_ACCOUNT' if name.endswith('_FILE') else 'local'}/ai/run/" in text


@pytest.mark.parametrize(
    ("models", "name", "body"),
    [
        ([("b", 384), ("a", 0), ("c", 0)], "a", '"prompt": "where'),
        ([("b", 384)], "b", '"text": ["where'),
        ([], "<model>", '"prompt": "where'),
    ],
)
def test_the_curl_calls_the_first_model_that_generates_text(monkeypatch, capsys, models, name, body):
    served = [ModelLine(name, "", 1, 1, dimensions) for name, dimensions in models]
    monkeypatch.setattr(announcement, "_served", lambda: served)
    announcement.announce("127.0.0.1:8787", 1.0)
    text = capsys.readouterr().out
    assert f'/ai/run/{name}"' in text and body in text
    assert ("Models: b, a, c" in text) == (len(models) > 1)


def test_the_curl_quotes_the_name_of_a_folder(monkeypatch, capsys):
    served = [ModelLine('My "model" $1', "", 1, 1, 0)]
    monkeypatch.setattr(announcement, "_served", lambda: served)
    announcement.announce("127.0.0.1:8787", 1.0)
    assert '/ai/run/My%20%22model%22%20%241"' in capsys.readouterr().out


def test_a_signal_that_arrives_while_a_line_is_logged_is_not_lost():
    class SignalledStream(io.StringIO):
        def write(self, text: str) -> int:
            signal.raise_signal(signal.SIGTERM)
            return super().write(text)

    handler = logging.StreamHandler(SignalledStream())
    before = signal.signal(signal.SIGTERM, serve._Stop())
    try:
        with pytest.raises(serve._Stopped):
            handler.handle(logging.makeLogRecord({"msg": "ready"}))
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_signal_that_arrives_during_a_finalizer_is_not_lost():
    class Finalized:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGTERM)

    stop = serve._Stop()
    before = signal.signal(signal.SIGTERM, stop)
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        Finalized()
        with pytest.raises(serve._Stopped):
            serve._watch([], 0.0, stop)
    finally:
        sys.unraisablehook = hook
        signal.signal(signal.SIGTERM, before)
