"""Random numbers of seeds and positions: their distribution, independence and stability."""

import math

import pytest
import torch

from inference_server.engine.native.gumbel import gumbel, key, uniform
from tests.inference_server.engine.native.sampling.random_numbers import excess, noise

SEEDS = [(seed, 7) for seed in range(1000)]
POSITIONS = [(7, position) for position in range(1000)]


@pytest.mark.parametrize("pairs", [SEEDS, POSITIONS], ids=["seeds", "positions"])
def test_random_numbers_fill_their_range_evenly(pairs):
    draws = noise(pairs).double()
    assert 0.0 < draws.min() and draws.max() <= 1.0
    assert abs(excess(draws.histc(1000, 0, 1), draws.numel() / 1000)) < 4
    for one_row_or_token in [*draws[:50], *draws.T[:50]]:
        assert excess(one_row_or_token.histc(20, 0, 1), 50.0) < 6
    for tail in (1e-2, 1e-4):  # the tail, in which the winning tokens are
        assert abs((draws < tail).sum() - tail * 1e6) < 5 * math.sqrt(tail * 1e6)


@pytest.mark.parametrize("seed", [0, 1, 2**32, 9_999_999_999, 2**63, 2**64 - 1])
def test_every_seed_has_its_own_numbers(seed):
    draws = noise([(seed, position) for position in range(10)])
    assert draws.unique().numel() > 9_990  # 2 equal pairs expected among 24 bits
    assert 0.48 < draws.mean() < 0.52


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param(SEEDS, [(s + 1, p) for s, p in SEEDS], id="neighbouring seeds"),
        pytest.param(POSITIONS, [(s, p + 1) for s, p in POSITIONS], id="neighbouring positions"),
        pytest.param(SEEDS, [(s + 2**32, p) for s, p in SEEDS], id="high bits of the seed"),
        pytest.param([(s, 5) for s in range(1000)], [(s + 1, 4) for s in range(1000)], id="seed and position swapped"),
    ],
)
def test_neighbouring_seeds_are_uncorrelated(first, second):
    one, other = noise(first), noise(second)
    for x, y in [(one, other), (one[:, 1:], other[:, :-1]), (one[:, 1:], one[:, :-1])]:  # of a million pairs
        assert abs(torch.corrcoef(torch.stack([x.flatten(), y.flatten()]).double())[0, 1]) < 0.005
    assert ((one < 0.01) & (other < 0.01)).sum() < 150  # 100 expected


def test_tokens_and_draws_are_uncorrelated():
    draws = noise([(seed, position) for seed in range(50) for position in range(40)]) - 0.5
    for rows in (draws, draws.T):
        correlations = torch.corrcoef(rows).fill_diagonal_(0.0) * math.sqrt(rows.shape[1])
        assert correlations.abs().max() < 6  # standard deviations, of up to two million pairs


def test_a_tokens_noise_does_not_depend_on_the_batch():
    pairs = [(5, 9), (5, 10), (6, 9)]
    together = noise(pairs, 5000)
    assert torch.equal(noise(pairs[1:2], 5000)[0], together[1])
    assert torch.equal(noise(pairs, 777), together[:, :777])
    ids = torch.randperm(5000, generator=torch.Generator().manual_seed(1))[:333].expand(3, -1)
    assert torch.equal(uniform([key(*pair) for pair in pairs], ids), together.gather(1, ids))
    assert torch.equal(gumbel(together.gather(1, ids)), gumbel(together).gather(1, ids))


def test_gumbel_noise_is_finite_and_fine_grained_in_its_tail():
    ends = torch.tensor([2.0**-33, 2.0**-32, 1e-9, 1.0000001e-9, 0.5, 1.0 - 2.0**-24, 1.0])
    expected = -torch.log(-torch.log1p(-ends.double().clamp(max=1.0 - 2.0**-24)))
    assert gumbel(ends).tolist() == pytest.approx(expected.tolist(), abs=2e-6)
    assert (gumbel(ends) <= -ends.log() + 2e-6).all()


def test_the_random_numbers_of_a_seed_and_position_never_change():
    # A release that changed these would change every seeded reply.
    assert noise([(42, 0)], 4)[0].tolist() == [
        0.7342141270637512,
        0.1852858066558838,
        0.48483192920684814,
        0.36520496010780334,
    ]
    assert noise([(2**64 - 1, 4095)], 50_000)[0, -3:].tolist() == [
        0.9972859621047974,
        0.34220245480537415,
        0.6630812287330627,
    ]
