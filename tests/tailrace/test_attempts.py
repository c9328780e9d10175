"""The pauses between attempts, and their end, by a clock of the test."""

import pytest

from tailrace import DeadlineError, GenerationError, OverloadedError
from tailrace.attempts import Attempts, Policy
from tailrace.rest.events import EventReader


class Clock:
    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def test_pauses_grow_and_are_bounded(monkeypatch):
    monkeypatch.setattr("tailrace.attempts._FIRST_PAUSE_SECONDS", 0.5)
    attempts = Attempts(Policy(retries=8))
    pauses = [attempts.pause_after(OverloadedError("busy")) for _ in range(8)]
    for pause, most in zip(pauses, [0.5, 1, 2, 4, 8, 8, 8, 8], strict=True):
        assert 0.75 * most <= pause <= most
    with pytest.raises(OverloadedError):
        attempts.pause_after(OverloadedError("busy"))


def test_a_pause_is_at_least_the_servers_own_delay():
    pause = Attempts(Policy()).pause_after(OverloadedError("busy", retry_after=3))
    assert 3 <= pause <= 3.75
    with pytest.raises(OverloadedError):
        Attempts(Policy()).pause_after(OverloadedError("busy", retry_after=3600))


def test_an_error_that_will_not_pass_is_raised_at_once():
    with pytest.raises(GenerationError):
        Attempts(Policy()).pause_after(GenerationError("failed"))


def test_the_total_deadline_limits_attempts_and_pauses():
    clock = Clock()
    attempts = Attempts(Policy(timeout=5, total_timeout=8), clock)
    assert attempts.timeout() == 5
    clock.seconds = 4
    assert attempts.timeout() == 4
    with pytest.raises(OverloadedError):  # a pause of 4 s would end after the deadline
        attempts.pause_after(OverloadedError("busy", retry_after=4))
    clock.seconds = 8
    with pytest.raises(DeadlineError, match="total_timeout, 8 s"):
        attempts.timeout()


def test_a_stream_may_be_cut_at_any_byte():
    text = (
        ": comment\n\n"
        'data: {"choices":[{"delta":{"content":"Sün\u2028day"},"finish_reason":null}]}\r\n\r\n'
        'data:{"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n'
        'data: {"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2}}\n\n'
        "data: [DONE]\n\n"
    ).encode()
    reader = EventReader("m", "id")
    events = [event for byte in text for event in reader.feed(bytes([byte]))]
    reader.end()
    assert [type(event).__name__ for event in events] == ["TextDelta", "Finished"]
    assert (events[0].text, events[1].usage.total_tokens) == ("Sün\u2028day", 3)
