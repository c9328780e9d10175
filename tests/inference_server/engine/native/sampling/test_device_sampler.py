"""Sampling on the device: the tokens of sampler.py, and markers where the host must decide."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inference_server.engine.native.device_sampler import NOT_FINITE, UNSETTLED, DeviceSampler
from inference_server.engine.native.gumbel import Keys, key
from inference_server.engine.native.penalties import PenaltyState
from inference_server.engine.native.readback import StepBuffers
from inference_server.engine.native.sampler import Row, sample
from inference_server.generation import LogitBias, SamplingParams
from tests.inference_server.engine.native.sampling.test_sampler import VARIED, VOCAB_SIZE, logits_of

CPU = torch.device("cpu")


def rows_of(params, *, start=0):
    """Return a row for each of the parameters. Rows with penalties have a state of their own."""
    rows = []
    for index, param in enumerate(params):
        sampling = SamplingParams(seed=index % 9, **param)
        state = PenaltyState(range(50), VOCAB_SIZE, CPU, [7, 7, index]) if sampling.has_penalties else None
        rows.append(Row(sampling, start + index, state))
    return rows


def launch(sampler, logits):
    """Run one step of a sampler. Returns its token ids or markers as a list."""
    keys = sampler.next_keys()
    return sampler.sample(logits, None if keys is None else StepBuffers(64, CPU).upload_keys(keys)).tolist()


def on_host(logits, rows):
    return [chosen.token_id for chosen in sample(logits.clone(), rows)]


@pytest.mark.parametrize("spread", [0.3, 3.0])
@pytest.mark.parametrize(
    "params",
    [
        pytest.param(VARIED * 4, id="mixed"),
        pytest.param([VARIED[0]] * 8, id="greedy"),
        pytest.param([VARIED[1], VARIED[2]] * 8, id="whole vocabulary"),
        pytest.param([VARIED[3], VARIED[5]] * 8, id="narrowed"),
        pytest.param([VARIED[8], {"temperature": 0.0, "frequency_penalty": 2.0}] * 8, id="penalised"),
        pytest.param([VARIED[9], VARIED[10], {"temperature": 1.0, "min_p": 1.0}] * 5, id="min_p"),
        pytest.param([VARIED[11], {"temperature": 0.0, "logit_bias": LogitBias.of({5: 30.0})}] * 8, id="biased"),
    ],
)
def test_the_tokens_equal_those_of_the_host(params, spread):
    sampler = DeviceSampler(rows_of(params), CPU, range(len(params)))
    rows = rows_of(params)
    for step in range(4):
        logits = logits_of(len(params), spread=spread, seed=step)
        before = logits.clone()
        chosen = launch(sampler, logits)
        assert chosen == on_host(logits, rows)
        assert torch.equal(logits, before)
        for row, token_id in zip(rows, chosen, strict=True):
            row.position += 1
            if row.penalties is not None:
                row.penalties.add(token_id)


def test_the_first_of_equal_logits_wins():
    logits = torch.zeros(3, VOCAB_SIZE)
    logits[1, 70:90] = logits[2, -1] = 1.0
    assert launch(DeviceSampler(rows_of([{"temperature": 0.0}] * 3), CPU), logits) == [0, 70, VOCAB_SIZE - 1]


@pytest.mark.parametrize("params", VARIED, ids=str)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_row_that_is_not_finite_gets_a_marker(params, value):
    logits = logits_of(3, spread=0.3)
    if value == -float("inf"):
        logits[1] = value
    else:
        logits[1, 5] = value
    chosen = launch(DeviceSampler(rows_of([params] * 3), CPU, range(3)), logits)
    assert chosen[1] == NOT_FINITE and chosen[0] >= 0 and chosen[2] >= 0


def test_a_row_that_needs_a_longer_shortlist_gets_a_marker_unless_it_is_to_be_sorted():
    params = [{"temperature": 5.0, "top_p": 0.99}] * 2
    rows, logits = rows_of(params), logits_of(2, spread=0.3)
    chosen = launch(DeviceSampler(rows, CPU, [1]), logits)
    assert chosen[0] == UNSETTLED
    assert chosen[1] == on_host(logits, rows)[1]


def test_a_large_top_k_is_sorted_at_once():
    rows, logits = rows_of([{"temperature": 5.0, "top_k": 700}] * 2), logits_of(2)
    assert launch(DeviceSampler(rows, CPU), logits) == on_host(logits, rows)


def test_the_states_of_penalties_count_the_tokens_on_the_device():
    rows = rows_of([{"temperature": 1.0}, {"temperature": 1.0, "presence_penalty": 0.5}])
    before = rows[1].penalties.counts.clone()
    _, token_id = launch(DeviceSampler(rows, CPU), logits_of(2))
    assert (rows[1].penalties.counts - before).nonzero().tolist() == [[token_id]]
    assert rows[1].penalties.seen[token_id]


def test_markers_are_not_counted_for_penalties():
    (row,) = rows_of([{"temperature": 1.0, "presence_penalty": 0.5}])
    counts, seen = row.penalties.counts.clone(), row.penalties.seen.clone()
    assert launch(DeviceSampler([row], CPU), torch.full((1, VOCAB_SIZE), float("nan"))) == [NOT_FINITE]
    assert torch.equal(row.penalties.counts, counts) and torch.equal(row.penalties.seen, seen)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**31)), min_size=1, max_size=9))
def test_keys_of_a_batch_equal_the_keys_of_its_rows(pairs):
    keys = Keys([seed for seed, _ in pairs], [position for _, position in pairs])
    for step in range(3):
        halves = keys.take()
        assert halves.dtype == np.int32 and halves.shape == (len(pairs), 2)
        numbers = [int(low) & 2**32 - 1 | (int(high) & 2**32 - 1) << 32 for low, high in halves]
        assert numbers == [key(seed, position + step) for seed, position in pairs]
