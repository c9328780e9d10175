"""Progress lines in the log."""

import logging
import re
import time

import pytest

from inference_server.progress import progress


def until_logged(caplog, number):
    """Wait until `number` lines have been logged, at most 20 s."""
    deadline = time.monotonic() + 20
    while len(caplog.records) < number and time.monotonic() < deadline:
        time.sleep(0.005)


def test_progress_logs_beginning_elapsed_time_and_end(caplog):
    caplog.set_level(logging.INFO)
    with progress("loading tiny", every_seconds=0.02):
        until_logged(caplog, 3)
    messages = [record.getMessage() for record in caplog.records]
    assert messages[0] == "loading tiny"
    assert len(messages) >= 4
    assert all(re.fullmatch(r"… loading tiny: \d+ s so far", message) for message in messages[1:-1])
    assert re.fullmatch(r"loading tiny: done in \d+\.\d s", messages[-1])


def test_a_short_phase_has_two_lines(caplog):
    caplog.set_level(logging.INFO)
    with progress("loading tiny"):
        pass
    first, last = [record.getMessage() for record in caplog.records]
    assert first == "loading tiny" and re.fullmatch(r"loading tiny: done in \d+\.\d s", last)


def test_a_phase_that_fails_has_no_last_line(caplog):
    caplog.set_level(logging.INFO)
    with pytest.raises(ValueError, match="broken"), progress("loading tiny", every_seconds=0.02):
        raise ValueError("broken")
    assert [record.getMessage() for record in caplog.records] == ["loading tiny"]


def test_a_brief_phase_has_lines_only_if_it_takes_long(caplog):
    caplog.set_level(logging.INFO)
    with progress("importing", is_brief=True):
        pass
    assert caplog.records == []
    with progress("importing", every_seconds=0.02, is_brief=True):
        until_logged(caplog, 1)
    messages = [record.getMessage() for record in caplog.records]
    assert messages[0] == "… importing: 0 s so far"
    assert messages[-1].startswith("importing: done in ")
