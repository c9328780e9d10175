"""The estimate whether drafts save time, from the times of steps and from earlier drafts of the sequence."""

import pytest

from inference_server.engine.native.speculation import drafting as module
from inference_server.engine.native.speculation.acceptance import Acceptance
from inference_server.engine.native.speculation.costs import MAX_ROWS, StepCosts
from tests.inference_server.engine.native.speculation.guesses import Guesses
from tests.inference_server.engine.native.stepping import Run, sampled, wanted


def measured(seconds_of, num_steps=60, rows=(1, 2, 4, 8)):
    """Return costs after steps of `rows` rows in turn, which take `seconds_of(rows)`."""
    costs = StepCosts()
    for _ in range(num_steps):
        for num_rows in rows:
            costs.add(num_rows, seconds_of(num_rows))
    return costs


def test_ratios_follow_the_measured_times():
    costs = measured(lambda rows: 0.010 + 0.001 * rows)
    assert costs.base_seconds == pytest.approx(0.011, rel=0.05)
    assert costs.ratio(8) == pytest.approx(18 / 11, rel=0.05)


def test_numbers_of_rows_without_steps_are_estimated_from_others():
    costs = measured(lambda rows: 0.010 * rows)
    assert costs.ratio(6) == pytest.approx(6, rel=0.05)
    assert costs.ratio(MAX_ROWS) == pytest.approx(MAX_ROWS, rel=0.1)


def test_the_first_step_of_a_number_of_rows_does_not_count():
    costs = measured(lambda rows: 0.010, rows=(1,))
    before = costs.ratio(2)
    costs.add(2, 5.0)
    assert costs.ratio(2) == before


def test_a_delayed_step_changes_little():
    costs = measured(lambda rows: 0.010, rows=(1, 2))
    costs.add(2, 60.0)
    assert costs.ratio(2) < 1.2


def test_a_delayed_first_step_makes_larger_steps_no_faster_than_small_ones():
    costs = measured(lambda rows: 0.010, rows=(1,), num_steps=2)
    assert costs.base_seconds == 0.010
    for _ in range(2):
        costs.add(2, 0.001)  # the step of one row was delayed
    assert [costs.ratio(rows) for rows in range(1, MAX_ROWS + 1)] == [1.0] * MAX_ROWS


def test_rejected_drafts_lower_the_expectation_and_accepted_ones_raise_it():
    acceptance = Acceptance((0.6, 0.6))
    acceptance.add(0, 4, 4)
    acceptance.add(1, 4, 0)
    assert acceptance.share(0) > 0.6
    assert acceptance.share(1) < 0.6
    before = acceptance.share(1)
    acceptance.skip(1)
    assert acceptance.share(1) > before


@pytest.mark.parametrize(("ratio_per_row", "wrong", "may_draft"), [(0.1, 0, True), (1.0, 0, False), (0.1, 1, False)])
def test_drafts_are_used_where_they_pay(monkeypatch, ratio_per_row, wrong, may_draft):
    request = wanted(max_tokens=190, sampling=sampled())
    plain = Run(overlap=False)
    seq = plain.add(request)
    plain.finish()
    monkeypatch.setattr(module, "PromptLookup", lambda: Guesses([seq.token_ids], wrong))
    monkeypatch.setattr(module.StepCosts, "ratio", lambda self, rows: 1.0 + ratio_per_row * (rows - 1))
    run = Run(overlap=False, drafting=module.Drafting)
    run.add(request)
    run.finish()
    if may_draft:
        assert run.drafting.num_drafted > 150
    else:
        assert run.drafting.num_drafted < 80  # drafts before the estimate is low, and trials afterwards
