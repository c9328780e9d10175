"""Progress lines in the log."""

import logging
import time

import pytest

from inference_server.progress import progress


def test_progress_logs_beginning_elapsed_time_and_end(caplog):
    caplog.set_level(logging.INFO)
    with progress("loading tiny", every_seconds=0.02):
        time.sleep(0.1)
    messages = [record.getMessage() for record in caplog.records]
    assert messages[0] == "loading tiny"
    assert len(messages) >= 4
    assert set(messages[1:-1]) == {"… loading tiny: 0 s so far"}
    assert messages[-1].startswith("loading tiny: done in 0.")


def test_a_short_phase_has_two_lines(caplog):
    caplog.set_level(logging.INFO)
    with progress("loading tiny"):
        pass
    assert [record.getMessage() for record in caplog.records] == ["loading tiny", "loading tiny: done in 0.0 s"]


def test_a_phase_that_fails_has_no_last_line(caplog):
    caplog.set_level(logging.INFO)
    with pytest.raises(ValueError, match="broken"), progress("loading tiny", every_seconds=0.02):
        raise ValueError("broken")
    time.sleep(0.06)
    assert [record.getMessage() for record in caplog.records] == ["loading tiny"]


def test_a_brief_phase_has_lines_only_if_it_takes_long(caplog):
    caplog.set_level(logging.INFO)
    with progress("importing", is_brief=True):
        pass
    assert caplog.records == []
    with progress("importing", every_seconds=0.02, is_brief=True):
        time.sleep(0.05)
    messages = [record.getMessage() for record in caplog.records]
    assert messages[0] == "… importing: 0 s so far"
    assert messages[-1].startswith("importing: done in 0.")
