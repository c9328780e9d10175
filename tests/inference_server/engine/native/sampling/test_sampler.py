"""Logits to tokens: the drawn tokens, their frequency, and no influence of other rows or of rounding."""

import math

import pytest
import torch

from inference_server.engine.native import sampler as sampling
from inference_server.engine.native.gumbel import gumbel
from inference_server.engine.native.penalties import PenaltyState
from inference_server.engine.native.sampler import NotFinite, Row, sample
from inference_server.generation import LogitBias, SamplingParams
from tests.inference_server.engine.native.sampling.random_numbers import VOCAB_SIZE, excess, noise


def logits_of(num_rows, vocab_size=VOCAB_SIZE, *, spread=3.0, seed=0):
    return torch.randn(num_rows, vocab_size, generator=torch.Generator().manual_seed(seed)) * spread


def row(seed=1, position=10, penalties=None, **params):
    return Row(SamplingParams(seed=seed, **params), position, penalties)


def tokens(logits, rows):
    return [chosen.token_id for chosen in sample(logits.clone(), rows)]


def penalty_state(prompt_ids, reply_ids, vocab_size=VOCAB_SIZE):
    state = PenaltyState(prompt_ids, vocab_size, torch.device("cpu"))
    for token_id in reply_ids:
        state.add(token_id)
    return state


def frequencies(logits, num_draws=1000, **params):
    """Return how often each token of one row of logits is drawn by `num_draws` seeds in one call."""
    rows = [row(seed=seed, **params) for seed in range(num_draws)]
    counts = torch.bincount(torch.tensor(tokens(logits.expand(num_draws, -1), rows)), minlength=logits.shape[-1])
    return counts / num_draws


# Choosing.


def test_greedy_takes_the_largest_logit():
    logits = logits_of(16)
    assert tokens(logits, [row(seed=seed, temperature=0.0) for seed in range(16)]) == logits.argmax(-1).tolist()


@pytest.mark.parametrize("temperature", [1e-8, 1e-30])
@pytest.mark.parametrize("narrowed", [{}, {"top_k": 40}, {"top_p": 0.9}], ids=str)
def test_a_temperature_too_small_to_divide_by_is_greedy(temperature, narrowed):
    logits = logits_of(8)
    rows = [row(seed=seed, temperature=temperature, **narrowed) for seed in range(8)]
    assert tokens(logits, rows) == logits.argmax(-1).tolist()


VARIED = [
    {"temperature": 0.0},
    {"temperature": 1.0},
    {"temperature": 5.0},
    {"temperature": 1.5, "top_k": 5},
    {"temperature": 5.0, "top_k": 700},
    {"temperature": 1.5, "top_p": 0.5},
    {"temperature": 5.0, "top_p": 0.99},
    {"temperature": 2.0, "top_k": 300, "top_p": 0.9},
    {"temperature": 3.0, "repetition_penalty": 1.3, "presence_penalty": 0.5},
    {"temperature": 3.0, "min_p": 0.05},
    {"temperature": 5.0, "min_p": 1e-4, "top_k": 300, "top_p": 0.95},
    {"temperature": 3.0, "presence_penalty": 0.5, "logit_bias": LogitBias.of({n: -100.0 for n in range(0, 900, 3)})},
]


def varied_rows():
    state = PenaltyState(range(50), VOCAB_SIZE, torch.device("cpu"))
    params = [VARIED[i % len(VARIED)] for i in range(36)]
    return [row(seed=i % 9, position=i, penalties=state if "presence_penalty" in param else None, **param)
            for i, param in enumerate(params)]  # fmt: skip


def test_a_row_gets_the_same_token_alone_and_in_a_batch():
    logits, rows = logits_of(36), varied_rows()
    together = tokens(logits, rows)
    assert [tokens(logits[i : i + 1], [rows[i]])[0] for i in range(36)] == together
    assert len(set(together)) > 20


def test_a_row_gets_the_same_token_in_any_order():
    logits, rows = logits_of(36), varied_rows()
    order = torch.randperm(36, generator=torch.Generator().manual_seed(3)).tolist()
    together = tokens(logits, rows)
    assert tokens(logits[order], [rows[i] for i in order]) == [together[i] for i in order]


@pytest.mark.parametrize("narrowed", [{}, {"top_k": 100}, {"top_p": 0.95}], ids=str)
def test_another_seed_or_position_gives_another_token(narrowed):
    logits = logits_of(1).expand(50, -1)
    by_seed = tokens(logits, [row(seed=seed, temperature=3.0, **narrowed) for seed in range(50)])
    by_position = tokens(logits, [row(position=position, temperature=3.0, **narrowed) for position in range(50)])
    assert len(set(by_seed)) > 10
    assert len(set(by_position)) > 10


@pytest.mark.parametrize("vocab_size", [1000, 997, 4096, 49_152])
@pytest.mark.parametrize("num_pieces", [8, 1])
def test_the_winner_has_the_largest_sum_of_score_and_noise(vocab_size, num_pieces, monkeypatch):
    monkeypatch.setattr(sampling, "NUM_PIECES", num_pieces)  # with 1, nearly always more have to be searched
    logits = logits_of(20, vocab_size) * torch.linspace(0.0, 3.0, 20)[:, None]
    logits[5:10] = -math.inf
    logits[5:10, -3:] = 1.0
    scores = logits / 0.8 + gumbel(noise([(seed, 10) for seed in range(20)], vocab_size))
    rows = [row(seed=seed, temperature=0.8) for seed in range(20)]
    assert tokens(logits, rows) == scores.argmax(-1).tolist()


@pytest.mark.parametrize("narrowed", [{"top_k": 50}, {"top_p": 0.8}, {"top_k": 30, "top_p": 0.9}], ids=str)
def test_top_k_and_top_p_keep_the_same_tokens_as_sorting(narrowed):
    logits = logits_of(20, 32_768, spread=4.0)
    rows = [row(seed=seed, temperature=0.9, **narrowed) for seed in range(20)]
    ordered = (logits / 0.9).sort(descending=True)
    values = ordered.values.double()
    values[:, rows[0].params.top_k or 32_768 :] = -math.inf
    shares = values.softmax(-1)
    values[shares.cumsum(-1) - shares >= rows[0].params.top_p] = -math.inf
    drawn = noise([(seed, 10) for seed in range(20)], 32_768).gather(1, ordered.indices)
    winners = (values + gumbel(drawn)).argmax(-1, keepdim=True)
    assert tokens(logits, rows) == ordered.indices.gather(1, winners).squeeze(-1).tolist()


def test_top_k_and_top_p_draw_with_the_same_noise():
    logits = logits_of(200)
    unrestricted, narrowed = (
        tokens(logits, [row(seed=seed, temperature=0.7, **params) for seed in range(200)])
        for params in ({}, {"top_k": 20, "top_p": 0.95})
    )
    kept = [token in logits[n].topk(20).indices for n, token in enumerate(unrestricted)]
    assert sum(one == other for one, other in zip(unrestricted, narrowed, strict=True)) > 0.85 * sum(kept) > 100


def inverse_transform(logits):
    """Return each row's draw by its cumulative probabilities."""
    thresholds = torch.rand(len(logits), 1, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    cumulative = logits.double().softmax(-1).cumsum(-1)
    return torch.searchsorted(cumulative, thresholds * cumulative[:, -1:]).squeeze(-1)


def test_a_small_error_in_the_logits_seldom_changes_a_draw():
    logits = logits_of(1, 2560).repeat(1000, 1)
    errors = logits_of(1000, 2560, spread=1.0, seed=2)
    rows = [row(seed=seed, temperature=1.0) for seed in range(1000)]
    exact = tokens(logits, rows)

    def flips(size):
        return sum(one != other for one, other in zip(exact, tokens(logits + size * errors, rows), strict=True))

    # The two best scores differ by less than e with a probability below e. The pair's error is about 1.4 sizes,
    # and half the time it widens the gap: at most 0.6 sizes, 1,000 times: 0.006 and 6 draws.
    assert flips(1e-5) <= 1
    assert flips(1e-2) <= 15
    by_inverse_transform = (inverse_transform(logits) != inverse_transform(logits + 1e-2 * errors)).sum()
    assert by_inverse_transform > 3 * flips(1e-2)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
@pytest.mark.parametrize("narrowed", [{}, {"top_k": 12}, {"top_p": 0.9999999}], ids=str)
def test_tokens_are_as_frequent_as_probable(temperature, narrowed):
    logits = torch.tensor([[2.0, 1.0, 0.5, 0.0, -0.5, -1.0, 1.5, -2.0, 0.25, -0.25, 3.0, -3.0]])
    num_draws = 10_000
    rows = [row(seed=n % 200, position=n // 200, temperature=temperature, **narrowed) for n in range(num_draws)]
    counts = torch.bincount(torch.tensor(tokens(logits.repeat(num_draws, 1), rows)), minlength=12)
    assert excess(counts, num_draws * torch.softmax(logits[0] / temperature, dim=-1)) < 5


def test_tokens_of_a_large_vocabulary_are_as_frequent_as_probable():
    logits = logits_of(1, 2560, spread=0.5)
    num_draws = 10_000
    counts = torch.zeros(2560)
    for first in range(0, num_draws, 1000):
        rows = [row(seed=n, position=n % 7, temperature=1.0) for n in range(first, first + 1000)]
        counts += torch.bincount(torch.tensor(tokens(logits.expand(1000, -1), rows)), minlength=2560)
    # Tokens in the order of their probability, in 128 groups of 20.
    order = logits[0].argsort()
    expected = num_draws * torch.softmax(logits[0], dim=-1)
    assert excess(counts[order].view(128, 20).sum(-1), expected[order].view(128, 20).sum(-1)) < 5
    assert excess(counts.view(128, 20).sum(-1), expected.view(128, 20).sum(-1)) < 5


def test_top_k_and_top_p_preserve_the_ratios_of_kept_tokens():
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()[None]
    top_k = frequencies(logits, temperature=1.0, top_k=2)
    top_p = frequencies(logits, temperature=1.0, top_p=0.75)
    both = frequencies(logits, temperature=1.0, top_k=3, top_p=0.7)  # the first two of 4/9, 3/9, 2/9
    assert top_k.tolist() == pytest.approx([4 / 7, 3 / 7, 0, 0], abs=0.05)
    assert top_p.tolist() == pytest.approx([4 / 9, 3 / 9, 2 / 9, 0], abs=0.05)
    assert both.tolist() == pytest.approx([4 / 7, 3 / 7, 0, 0], abs=0.05)


def test_min_p_keeps_the_tokens_that_are_likely_enough_after_temperature():
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()[None]
    assert frequencies(logits, temperature=1.0, min_p=0.3).tolist() == pytest.approx([4 / 9, 3 / 9, 2 / 9, 0], abs=0.05)
    # At temperature 2 the ratios are square roots: 1, 0.87, 0.71, 0.5.
    assert frequencies(logits, temperature=2.0, min_p=0.6).nonzero().flatten().tolist() == [0, 1, 2]
    assert frequencies(logits, temperature=2.0, min_p=0.4).nonzero().flatten().tolist() == [0, 1, 2, 3]


def test_top_p_refers_to_the_tokens_that_min_p_leaves():
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()[None]
    shares = frequencies(logits, temperature=1.0, min_p=0.7, top_p=0.5)  # of 4/7 and 3/7
    assert shares.tolist() == [1.0, 0, 0, 0]


@pytest.mark.parametrize("min_p", [0.01, 0.5, 1.0])
@pytest.mark.parametrize("narrowed", [{}, {"top_k": 300}, {"top_p": 0.999}], ids=str)
def test_min_p_leaves_the_tokens_of_a_draw_without_it(min_p, narrowed):
    logits = logits_of(200)
    floor = logits.amax(-1) + 2.0 * math.log(min_p)
    free, held = (
        tokens(logits, [row(seed=seed, temperature=2.0, **narrowed, **params) for seed in range(200)])
        for params in ({}, {"min_p": min_p})
    )
    kept = [logits[n, token] >= floor[n] for n, token in enumerate(free)]
    assert all(logits[n, token] >= floor[n] for n, token in enumerate(held))
    if not narrowed.get("top_p"):  # a smaller mass moves the limit of top_p
        assert [b for b, keep in zip(held, kept, strict=True) if keep] == [
            a for a, keep in zip(free, kept, strict=True) if keep
        ]


def test_greedy_ignores_min_p():
    logits = logits_of(16)
    assert tokens(logits, [row(temperature=0.0, min_p=1.0) for _ in range(16)]) == logits.argmax(-1).tolist()


def test_a_lower_temperature_sharpens():
    logits = logits_of(1, 50, spread=1.0)
    shares = [frequencies(logits, 500, temperature=t)[logits.argmax()].item() for t in (0.1, 0.6, 1.0, 5.0)]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > 0.8 and shares[-1] < 0.1


@pytest.mark.parametrize("narrowed", [{"top_k": 1}, {"top_p": 1e-9}, {"top_k": 500, "top_p": 1e-9}], ids=str)
def test_the_narrowest_choice_is_the_largest_logit(narrowed):
    logits = logits_of(64)
    rows = [row(seed=seed, temperature=5.0, **narrowed) for seed in range(64)]
    assert tokens(logits, rows) == logits.argmax(-1).tolist()


@pytest.mark.parametrize("top_k", [2, 40, 256, 257, 600, VOCAB_SIZE, 2**32 - 1])
def test_top_k_keeps_exactly_that_many(top_k):
    logits = torch.linspace(0.0, 0.1, VOCAB_SIZE)[None]  # nearly even, so that the last kept tokens are drawn as well
    least_likely = frequencies(logits, 600, temperature=1.0, top_k=top_k).nonzero().min().item()
    kept = min(top_k, VOCAB_SIZE)
    assert VOCAB_SIZE - kept <= least_likely <= VOCAB_SIZE - 0.98 * kept


@pytest.mark.parametrize("top_p", [0.1, 0.5, 0.9])
def test_top_p_reaches_beyond_the_shortlist(top_p):
    # 256 of 1000 nearly even tokens have a quarter of the mass.
    logits = torch.linspace(0.0, 1e-3, VOCAB_SIZE)[None]
    least_likely = frequencies(logits, 600, temperature=1.0, top_p=top_p).nonzero().min().item()
    kept = top_p * VOCAB_SIZE
    assert VOCAB_SIZE - 1.01 * kept <= least_likely <= VOCAB_SIZE - 0.98 * kept


def test_a_token_of_probability_zero_is_never_drawn():
    logits = torch.full((1, VOCAB_SIZE), -math.inf)
    logits[0, [3, 500, 998]] = 0.0
    for narrowed in ({}, {"top_k": 40}, {"top_k": 600}, {"top_p": 0.999}):
        assert frequencies(logits, 200, temperature=1.0, **narrowed).nonzero().flatten().tolist() == [3, 500, 998]


# Logits that are not finite.


@pytest.mark.parametrize("bad", [math.nan, math.inf], ids=str)
def test_rows_that_are_not_finite_are_reported_unchanged(bad):
    logits = logits_of(4)
    logits[1, 7] = bad
    logits[3] = -math.inf
    before = logits.clone()
    state = penalty_state([0], [1, 2, 3])
    with pytest.raises(NotFinite) as caught:
        sample(logits, [row(presence_penalty=1.0, penalties=state) for _ in range(4)])
    assert caught.value.rows == [1, 3]
    assert torch.equal(logits.nan_to_num(9.0), before.nan_to_num(9.0))


# Log probabilities.


@pytest.mark.parametrize("params", VARIED, ids=str)
def test_log_probabilities_are_those_of_the_unchanged_logits(params):
    logits = logits_of(1)
    expected = torch.log_softmax(logits[0].double(), dim=-1)
    state = penalty_state(range(500), range(500)) if "presence_penalty" in params else None
    (chosen,) = sample(logits.clone(), [row(logprobs=5, penalties=state, **params)])
    assert chosen.logprob.token.token_id == chosen.token_id
    assert chosen.logprob.token.logprob == pytest.approx(expected[chosen.token_id].item(), abs=1e-4)
    assert [c.token_id for c in chosen.logprob.top] == expected.topk(5).indices.tolist()
    assert [c.logprob for c in chosen.logprob.top] == pytest.approx(expected.topk(5).values.tolist(), abs=1e-4)


def test_log_probabilities_are_reported_only_on_request():
    first, second, third = sample(logits_of(3), [row(logprobs=2), row(), row(logprobs=0)])
    assert len(first.logprob.top) == 2
    assert second.logprob is None
    assert (third.logprob.token.token_id, third.logprob.top) == (third.token_id, ())


def test_no_more_alternatives_are_reported_than_there_are_tokens():
    (chosen,) = sample(logits_of(1, 3), [row(logprobs=20)])
    assert len(chosen.logprob.top) == 3
    assert math.fsum(math.exp(candidate.logprob) for candidate in chosen.logprob.top) == pytest.approx(1.0, abs=1e-5)
