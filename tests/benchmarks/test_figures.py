"""The benchmark's figures, computed from made-up records: no peer and no model runs."""

import pytest

from benchmarks.load.dialects import WorkersAi
from benchmarks.load.load import Record, Request
from benchmarks.report.statistics import arrival, over_rounds, percentile, summary


def record(*events: float, start: float = 0.0) -> Record:
    return Record(start=start, events=list(events), completion_tokens=len(events))


@pytest.mark.parametrize(("percent", "expected"), [(0, 1.0), (50, 2.5), (100, 4.0), (99, 3.97)])
def test_percentile_interpolates_between_the_two_nearest_ranks(percent, expected):
    assert percentile([4.0, 1.0, 3.0, 2.0], percent) == pytest.approx(expected)


def test_percentile_of_no_values_is_an_error():
    with pytest.raises(ValueError, match="no values"):
        percentile([], 50)


def test_tokens_per_second_span_first_start_to_last_event():
    figures = summary([record(1.0, 2.0), record(1.5, 4.0, start=0.5)])
    assert figures["tokens_per_s"] == pytest.approx(4 / 4.0)
    assert figures["ttft_p50_ms"] == pytest.approx(1000.0)


def test_gaps_during_a_late_prompt_are_separate_from_those_before():
    figures = arrival([record(0.0, 0.1, 0.2, 0.8, 0.9)], record(0.8, start=0.25))
    assert figures["itl_before_p50_ms"] == pytest.approx(100.0)
    assert figures["itl_during_p99_ms"] == pytest.approx(600.0)


def test_a_figure_missing_in_one_round_is_the_median_of_the_others():
    spread = over_rounds([{"a": 1.0}, {"a": 3.0, "b": 5.0}])
    assert (spread["a"]["median"], spread["b"]["median"]) == (2.0, 5.0)


def test_an_event_in_two_pieces_has_the_time_of_its_last_byte():
    head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    event = b'data: {"response":"Hi"}\n\n'
    chunk = b"%x\r\n%b\r\n" % (len(event), event)
    reads = [(1.0, head), (2.0, chunk[:15]), (3.0, chunk[15:]), (4.0, b"0\r\n\r\n")]
    seen = WorkersAi({"model": "m"}).record(Request(max_tokens=1), 0.0, reads)
    assert (seen.text, seen.events, seen.error) == ("Hi", [3.0], None)


def test_a_refusal_is_recorded_with_its_status():
    reads = [(1.0, b"HTTP/1.1 429 Too Many Requests\r\ncontent-length: 2\r\n\r\n{}")]
    assert WorkersAi({"model": "m"}).record(Request(max_tokens=1), 0.0, reads).error.startswith("HTTP 429")
