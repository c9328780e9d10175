"""The text that `tailrace serve` prints once both services are ready, and its signals."""

import io
import logging
import signal

import pytest

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
    announcement.announce("127.0.0.1:8787", 1.0)
    assert f'-H "Authorization: Bearer {token}"' in capsys.readouterr().out


def test_a_signal_that_arrives_while_a_line_is_logged_is_not_lost():
    class SignalledStream(io.StringIO):
        def write(self, text: str) -> int:
            signal.raise_signal(signal.SIGTERM)
            return super().write(text)

    handler = logging.StreamHandler(SignalledStream())
    before = signal.signal(signal.SIGTERM, serve._raise_stopped)
    try:
        with pytest.raises(serve._Stopped):
            handler.handle(logging.makeLogRecord({"msg": "ready"}))
    finally:
        signal.signal(signal.SIGTERM, before)
