"""Lines of progress."""

import pytest

from inference_server.weights.fetching.transfer import Transfer, duration


class Clock:
    """A clock that a test sets."""

    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def test_a_line_has_bytes_rate_and_remaining_time(clock):
    transfer = Transfer("getting owner/name", 4_000_000_000, clock=clock)
    clock.now += 4
    transfer.add(1_000_000_000)
    assert transfer.line() == "getting owner/name: 1.0 GB of 4.0 GB (25%), 250.0 MB/s, 12 s left"


def test_the_rate_is_that_of_the_last_seconds(clock):
    transfer = Transfer("x", 10_000_000, clock=clock)
    for num_bytes in [1_000_000] * 2 + [100_000] * 20:
        clock.now += 1
        transfer.add(num_bytes)
        line = transfer.line()
    assert "100.0 kB/s" in line


def test_bytes_that_were_there_before_do_not_change_the_rate(clock):
    transfer = Transfer("x", 4_000_000, clock=clock)
    clock.now += 1
    transfer.skip(2_000_000)
    transfer.add(1_000_000)
    assert transfer.line() == "x: 3.0 MB of 4.0 MB (75%), 1.0 MB/s, 1 s left"


def test_a_line_without_new_bytes_states_since_when(clock):
    transfer = Transfer("x", 4_000_000, clock=clock)
    transfer.add(1_000_000)
    clock.now += 95
    assert transfer.line() == "x: 1.0 MB of 4.0 MB (25%), no data for 1 min 35 s"


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (59.4, "59 s"), (185, "3 min 5 s"), (7800, "2 h 10 min")])
def test_a_duration_has_two_units_at_most(seconds, text):
    assert duration(seconds) == text
