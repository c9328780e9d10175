"""Penalties and biases: added before a token is drawn, each to its own row."""

import pytest
import torch

from inference_server.engine.native.sampler import Row, sample
from inference_server.generation import LogitBias, SamplingParams
from tests.inference_server.engine.native.sampling.random_numbers import VOCAB_SIZE
from tests.inference_server.engine.native.sampling.test_sampler import (
    logits_of,
    penalty_state,
    row,
    tokens,
)


def penalised(logits, prompt_ids, reply_ids, repetition, frequency, presence):
    """Apply the contract's definition of penalties, token by token."""
    result = list(logits)
    for token_id in {*prompt_ids, *reply_ids}:
        result[token_id] = result[token_id] / repetition if result[token_id] > 0 else result[token_id] * repetition
    for token_id in set(reply_ids):
        result[token_id] -= reply_ids.count(token_id) * frequency + presence
    return result


@pytest.mark.parametrize(
    ("repetition", "frequency", "presence"),
    [(1.3, 0.0, 0.0), (0.7, 0.0, 0.0), (1.0, 0.8, 0.0), (1.0, 0.0, 1.1), (1.2, 0.5, -0.7), (2.0, -2.0, 2.0)],
)
def test_penalties_are_those_of_the_contract(repetition, frequency, presence):
    logits = logits_of(1, 40)
    prompt_ids, reply_ids = [1, 2, 3, 3, 7, 11], [3, 20, 20, 20, 21]
    params = {"repetition_penalty": repetition, "frequency_penalty": frequency, "presence_penalty": presence}
    expected = penalised(logits[0].tolist(), prompt_ids, reply_ids, repetition, frequency, presence)
    sample(logits, [row(penalties=penalty_state(prompt_ids, reply_ids, 40), **params)])
    assert logits[0].tolist() == pytest.approx(expected, abs=1e-5)


def test_greedy_respects_penalties():
    logits = torch.tensor([[1.0, 5.0, 4.9, 0.0]])
    rows = [row(temperature=0.0, presence_penalty=1.0, penalties=penalty_state([0], [1], 4))]
    assert tokens(logits, rows) == [2]


def test_frequency_and_presence_do_not_count_the_prompt():
    logits = torch.tensor([[1.0, 5.0, 4.9, 0.0]])
    rows = [row(temperature=0.0, presence_penalty=2.0, frequency_penalty=2.0, penalties=penalty_state([1, 1], [], 4))]
    assert tokens(logits, rows) == [1]


def test_penalties_change_their_own_row_alone():
    logits = logits_of(3)
    before = logits.clone()
    sample(logits, [row(), row(presence_penalty=2.0, penalties=penalty_state([0], range(100))), row()])
    assert torch.equal(logits[[0, 2]], before[[0, 2]])
    assert torch.equal(logits[1, 100:], before[1, 100:])
    assert torch.allclose(logits[1, :100], before[1, :100] - 2.0)


@pytest.mark.parametrize("narrowed", [{}, {"top_k": 40}], ids=str)
def test_the_smallest_repetition_penalty_still_draws_a_likely_token(narrowed):
    logits = logits_of(1)
    likely = logits[0].topk(300).indices.tolist()
    rows = [row(seed=s, repetition_penalty=1e-38, penalties=penalty_state(likely, []), **narrowed) for s in range(20)]
    drawn = tokens(logits.expand(20, -1), rows)
    assert set(drawn) <= set(likely)


# Bias.


def test_a_bias_is_added_before_the_penalties():
    logits = torch.tensor([[1.0, -2.0, 3.0]])
    bias = LogitBias.of({0: 2.0, 1: 4.0})
    sample(logits, [row(repetition_penalty=2.0, logit_bias=bias, penalties=penalty_state([0, 1], [], 3))])
    assert logits.tolist() == [[1.5, 1.0, 3.0]]


@pytest.mark.parametrize("temperature", [0.0, 0.7, 5.0])
def test_a_bias_excludes_tokens_or_selects_one(temperature):
    logits = logits_of(100)
    likely = logits.topk(50).indices.tolist()
    rows = [row(seed=n, temperature=temperature, logit_bias=LogitBias.of(dict.fromkeys(likely[n], -100.0)))
            for n in range(100)]  # fmt: skip
    assert all(token not in excluded for token, excluded in zip(tokens(logits, rows), likely, strict=True))
    (chosen,) = set(
        tokens(logits, [row(seed=n, temperature=0.7, logit_bias=LogitBias.of({7: 100.0})) for n in range(100)])
    )
    assert chosen == 7


def test_a_bias_changes_its_own_row_alone():
    logits = logits_of(3)
    before = logits.clone()
    sample(logits, [row(), row(logit_bias=LogitBias.of({5: 1.5})), row()])
    before[1, 5] += 1.5
    assert torch.equal(logits, before)


def test_a_token_that_a_grammar_needs_is_chosen_even_if_a_bias_excludes_it():
    allowed = torch.zeros(VOCAB_SIZE, dtype=torch.uint8)
    allowed[[3, 9]] = 1
    params = SamplingParams(seed=1, temperature=1.0, logit_bias=LogitBias.of({3: -100.0, 9: -100.0}))
    (chosen,) = sample(logits_of(1), [Row(params, 4, None, allowed)])
    assert chosen.token_id in (3, 9)
