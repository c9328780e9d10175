"""The compiled sampler against its torch version, on every instruction set of this CPU."""

import math

import pytest
import torch

from inference_server.engine.native import sampler as sampling
from inference_server.engine.native.gumbel import gumbel, key, uniform_of_all
from inference_server.engine.native.penalties import PenaltyState
from inference_server.engine.native.sampler import NotFinite, Row, sample
from inference_server.generation import LogitBias, SamplingParams
from inference_server.kernels import sampling_calls as calls
from inference_server.kernels.isa import choice
from inference_server.kernels.jit import kernel as registry
from inference_server.kernels.jit.kernel import kernel as compiled

CPU = torch.device("cpu")
EVERY_SET = pytest.mark.parametrize("isa", choice.available(), ids=lambda isa: isa.name)
BANNED = LogitBias.of(dict.fromkeys(range(3, 30), -100.0) | {0: 2.0, 63: 100.0})
VARIED = [
    {"temperature": 0.0},
    {"temperature": 1.0},
    {"temperature": 5.0},
    {"temperature": 1e-4},
    {"temperature": 0.8, "top_k": 40},
    {"temperature": 5.0, "top_k": 300},
    {"temperature": 1.5, "top_k": 1},
    {"temperature": 0.7, "top_p": 0.9},
    {"temperature": 3.0, "top_p": 0.3},
    {"temperature": 1.0, "top_p": 1e-9},
    {"temperature": 1.3, "top_k": 200, "top_p": 0.8},
    {"temperature": 1.0, "repetition_penalty": 1.3, "frequency_penalty": 0.2, "presence_penalty": 0.5},
    {"temperature": 0.0, "repetition_penalty": 0.7, "frequency_penalty": -0.3},
    {"temperature": 1.2, "min_p": 0.05},
    {"temperature": 5.0, "min_p": 1e-6, "top_p": 0.9},
    {"temperature": 5.0, "min_p": 0.4, "top_k": 60},
    {"temperature": 3.0, "min_p": 1.0, "top_k": 2, "top_p": 0.5},
    {"temperature": 0.0, "min_p": 0.5, "logit_bias": LogitBias.of({8: 20.0, 40: -100.0})},
    {"temperature": 1.0, "logit_bias": LogitBias.of({n: n % 7 - 3.5 for n in range(0, 60, 2)})},
    {"temperature": 2.0, "min_p": 0.1, "repetition_penalty": 1.5, "frequency_penalty": 0.2, "logit_bias": BANNED},
]
NUM_ROWS = 2 * len(VARIED)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def use(monkeypatch):
    """Return a function that makes the sampler use the kernel of an instruction set, or torch's operations for None."""

    def use(isa):
        kernel = None if isa is None else compiled("sample_rows", isa=isa)
        monkeypatch.setattr(sampling, "sampling_kernel", lambda logits: kernel)

    return use


def logits_of(num_rows, vocab_size, *, is_rounded=False):
    logits = torch.randn(num_rows, vocab_size, generator=torch.Generator().manual_seed(vocab_size)) * 3
    logits[:, 5:35] += torch.linspace(7, 2, 30)
    return logits.bfloat16().float() if is_rounded else logits


def varied_rows(vocab_size, count=NUM_ROWS, **params):
    rows = []
    for index in range(count):
        varied = VARIED[index % len(VARIED)] | params
        state = PenaltyState(range(40), vocab_size, CPU, [7, 7, 20, 30]) if "frequency_penalty" in varied else None
        allowed = (torch.arange(vocab_size) % 3 == 1).to(torch.uint8) if index % 5 == 4 else None
        rows.append(Row(SamplingParams(seed=index, **varied), index, state, allowed))
    return rows


def tokens(samples):
    return [chosen.token_id for chosen in samples]


@EVERY_SET
@pytest.mark.parametrize("vocab_size", [64, 1001, 8192])
@pytest.mark.parametrize("is_rounded", [False, True], ids=["float32", "rounded to bfloat16"])
def test_tokens_and_changed_logits_are_those_of_torch(isa, vocab_size, is_rounded, use):
    rows, logits = varied_rows(vocab_size), logits_of(NUM_ROWS, vocab_size, is_rounded=is_rounded)
    use(None)
    expected = logits.clone()
    wanted = tokens(sample(expected, rows))
    use(isa)
    assert tokens(sample(logits, rows)) == wanted
    assert torch.equal(logits, expected)


@EVERY_SET
def test_log_probabilities_are_those_of_torch(isa, use):
    rows, logits = varied_rows(1001, logprobs=6), logits_of(NUM_ROWS, 1001)
    logits[3, 5:] = -math.inf  # fewer than six tokens are left
    use(None)
    wanted = sample(logits.clone(), rows)
    use(isa)
    for found, expected in zip(sample(logits, rows), wanted, strict=True):
        assert found.token_id == expected.token_id == found.logprob.token.token_id
        assert found.logprob.token.logprob == pytest.approx(expected.logprob.token.logprob, abs=1e-4)
        finite = [each for each in expected.logprob.top if each.logprob > -math.inf]
        assert [each.token_id for each in found.logprob.top][: len(finite)] == [each.token_id for each in finite]
        assert [each.logprob for each in found.logprob.top] == pytest.approx(
            [each.logprob for each in expected.logprob.top], abs=1e-4
        )


def test_the_most_likely_tokens_are_listed_in_order_and_equal_ones_by_id(use):
    use(choice.available()[0])
    logits = torch.zeros(1, 200)
    logits[0, [150, 30]] = 1.0
    (chosen,) = sample(logits, [Row(SamplingParams(seed=1, logprobs=4), 1)])
    assert [each.token_id for each in chosen.logprob.top] == [30, 150, 0, 1]


@pytest.mark.parametrize("narrowed", [{"top_k": 3}, {"top_p": 0.0149}, {"top_k": 10, "top_p": 0.25}], ids=str)
def test_of_equal_logits_those_with_the_smallest_ids_are_kept(narrowed, use):
    use(choice.available()[0])
    rows = [Row(SamplingParams(seed=seed, temperature=1.0, **narrowed), 1) for seed in range(60)]
    assert set(tokens(sample(torch.full((60, 200), -0.0), rows))) == {0, 1, 2}


def test_torch_samples_rows_with_a_parameter_that_the_kernel_lacks(use, monkeypatch):
    rows, logits = varied_rows(1001), logits_of(NUM_ROWS, 1001)
    use(None)
    wanted = tokens(sample(logits.clone(), rows))
    use(choice.available()[0])
    # A kernel that ignores min_p.
    monkeypatch.setattr(sampling, "logit_depth", lambda params: -math.inf)
    assert tokens(sample(logits.clone(), rows)) != wanted
    monkeypatch.setattr(sampling, "UNCOMPILED", {"min_p": 0.0})
    assert tokens(sample(logits, rows)) == wanted


def test_torch_decides_between_scores_that_are_nearly_equal(use, monkeypatch):
    use(choice.available()[0])
    undecided = []
    monkeypatch.setattr(sampling, "_choose_undecided", lambda logits, tokens, rows: undecided.extend(tokens))
    noise = gumbel(uniform_of_all([key(seed, 1) for seed in range(20)], 500, CPU))
    logits = torch.full((20, 500), -50.0)
    logits[:, [3, 400]] = 2.0 - noise[:, [3, 400]]
    logits[10:, 3] += 1e-3
    sample(logits, [Row(SamplingParams(seed=seed, temperature=1.0), 1) for seed in range(20)])
    assert undecided == [-1] * 10 + [3] * 10


def test_torch_decides_if_the_mass_before_a_token_is_nearly_top_p(use, monkeypatch):
    use(choice.available()[0])
    undecided = []
    monkeypatch.setattr(sampling, "_choose_undecided", lambda logits, tokens, rows: undecided.extend(tokens))
    rows = [Row(SamplingParams(seed=seed, temperature=1.0, top_p=0.5), 1) for seed in range(300)]
    sample(torch.zeros(300, 64), rows)  # half of the mass lies before token 32
    assert set(undecided) == {-1, *range(32)}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf], ids=str)
@pytest.mark.parametrize("place", [0, 63, 64, 99])
def test_rows_that_are_not_finite_are_reported_before_any_logit_changes(bad, place, use):
    use(choice.available()[0])
    logits = logits_of(13, 100)
    logits[5] = -math.inf
    logits[5, place] = bad
    before = logits.clone()
    with pytest.raises(NotFinite) as caught:
        sample(logits, varied_rows(100, 13))
    assert caught.value.rows == [5]
    assert torch.equal(logits.nan_to_num(9.0), before.nan_to_num(9.0))


def test_masks_and_penalties_of_another_vocabulary_are_refused(use):
    use(choice.available()[0])
    for row in (
        Row(SamplingParams(seed=1), 1, allowed=torch.ones(99, dtype=torch.uint8)),
        Row(SamplingParams(seed=1), 1, PenaltyState([1], 99, CPU)),
    ):
        with pytest.raises(ValueError, match="vocabulary of 100 tokens"):
            sample(logits_of(1, 100), [row])


def test_every_kind_of_row_ends_if_no_logit_is_finite(use):
    use(choice.available()[0])
    for bad in (math.nan, math.inf, -math.inf):
        with pytest.raises(NotFinite):
            sample(torch.full((NUM_ROWS, 100), bad), varied_rows(100))


def test_without_kernels_torch_samples(monkeypatch):
    logits = logits_of(1, 100)
    assert calls.sampling_kernel(logits) is not None
    assert calls.sampling_kernel(logits[:, :63].contiguous()) is None
    assert calls.sampling_kernel(logits[:, ::1].double()) is None
    monkeypatch.setattr(registry, "chosen", lambda: None)
    assert calls.sampling_kernel(logits) is None
