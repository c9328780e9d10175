"""Replies with draft tokens equal those without, for any drafts."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inference_server.generation import Delta, FinishReason, SamplingParams
from tests.inference_server.engine.native.fake_runner import VOCAB_SIZE
from tests.inference_server.engine.native.speculation.guesses import always_drafting
from tests.inference_server.engine.native.stepping import GREEDY, Run, replies, sampled, wanted
from tests.inference_server.engine.native.test_overlap import REQUESTS


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(REQUESTS, st.integers(0, 25)), min_size=1, max_size=8),
    st.sampled_from([15, 20, 200]),
    st.booleans(),
    st.sampled_from([0, 2, 5]),
)
def test_replies_equal_those_without_drafts(arriving, num_blocks, overlap, wrong):
    requests = [request for request, _ in arriving]
    options = {"arrivals": [step for _, step in arriving], "num_blocks": num_blocks, "overlap": overlap}
    plain, _ = replies(requests, **options)
    with pytest.MonkeyPatch.context() as patch:
        drafting = always_drafting(patch, [tokens for _, tokens, _ in plain], wrong)
        drafted, _ = replies(requests, drafting=drafting, **options)
    assert drafted == plain


def with_drafts(monkeypatch, request, *, wrong=0, **options):
    """Return the reply without drafts, the reply with drafts, and the run with them."""
    (plain,), _ = replies([request], overlap=False, **options)
    drafting = always_drafting(monkeypatch, [plain[1]], wrong)
    (drafted,), run = replies([request], overlap=False, drafting=drafting, **options)
    return plain, drafted, run


def test_accepted_drafts_take_fewer_steps(monkeypatch):
    plain, drafted, run = with_drafts(monkeypatch, wanted(max_tokens=60, sampling=sampled()))
    assert drafted == plain
    assert run.drafting.num_accepted == run.drafting.num_drafted == 54
    assert sum(run.stepper.step_tokens.counts) == 6  # the prompt, and 5 steps of up to 12 tokens


def test_rejected_drafts_are_counted(monkeypatch):
    plain, drafted, run = with_drafts(monkeypatch, wanted(max_tokens=60, sampling=sampled()), wrong=4)
    assert drafted == plain
    assert 0 < run.drafting.num_accepted < run.drafting.num_drafted


def test_a_draft_never_exceeds_the_length_of_the_reply(monkeypatch):
    _, drafted, run = with_drafts(monkeypatch, wanted(max_tokens=5, sampling=sampled()))
    assert drafted[2].usage.completion_tokens == 5
    assert drafted[2].finish_reason is FinishReason.LENGTH
    assert run.drafting.num_drafted == 3


def test_log_probabilities_are_those_without_drafts(monkeypatch):
    def logprobs(run):
        (events,) = run.events.values()
        return [each for event in events if isinstance(event, Delta) for each in event.logprobs]

    request = wanted(max_tokens=40, sampling=sampled(logprobs=3))
    (plain,), before = replies([request], overlap=False)
    _, after = replies([request], overlap=False, drafting=always_drafting(monkeypatch, [plain[1]], 7))
    assert logprobs(after) == logprobs(before)
    assert len(logprobs(after)) == 40


class EvenTokens:
    """A constraint under which the parity of the allowed tokens changes with each token."""

    is_complete = False

    def __init__(self):
        self.accepted = []

    def allowed(self):
        return (np.arange(VOCAB_SIZE) % 2 == len(self.accepted) % 2).astype(np.uint8)

    def accept(self, token_id):
        assert self.allowed()[token_id]
        self.accepted.append(token_id)


@pytest.mark.parametrize("sampling", [GREEDY, sampled(), sampled(repetition_penalty=1.5)])
def test_a_constraint_advances_by_accepted_tokens_only(monkeypatch, sampling):
    (plain,), _ = replies([wanted(max_tokens=40, sampling=sampling, constraint=EvenTokens())], overlap=False)
    drafting = always_drafting(monkeypatch, [plain[1]], 5)
    constraint = EvenTokens()
    (drafted,), _ = replies(
        [wanted(max_tokens=40, sampling=sampling, constraint=constraint)], overlap=False, drafting=drafting
    )
    assert drafted == plain
    assert [*plain[1][3:]][: len(constraint.accepted)] == constraint.accepted


def test_rejected_tokens_never_enter_the_prefix_cache(monkeypatch):
    request = wanted(max_tokens=40, sampling=sampled())
    (plain,), _ = replies([request], overlap=False)
    run = Run(overlap=False, drafting=always_drafting(monkeypatch, [plain[1]], 3))
    registered = []
    register = run.scheduler._pool.register
    run.scheduler._pool.register = lambda block, key: registered.append(key) or register(block, key)
    seq = run.add(request)
    run.finish()
    size = run.scheduler.block_size
    assert registered == seq.block_keys.get(plain[1], (len(plain[1]) - 1) // size)


def test_a_draft_preempts_no_sequence(monkeypatch):
    requests = [wanted((5, 6, 7 + index), max_tokens=20, sampling=sampled(index)) for index in range(3)]
    plain, before = replies(requests, overlap=False, num_blocks=18)
    drafting = always_drafting(monkeypatch, [tokens for _, tokens, _ in plain])
    drafted, after = replies(requests, overlap=False, num_blocks=18, drafting=drafting)
    assert drafted == plain
    assert before.scheduler.num_preemptions == after.scheduler.num_preemptions == 0


def test_large_batches_and_steps_with_prompts_get_no_drafts(monkeypatch):
    requests = [wanted((5, 6, 7 + index), max_tokens=20, sampling=sampled(index)) for index in range(9)]
    plain, _ = replies(requests, overlap=False, max_running=9, chunk=64)
    drafting = always_drafting(monkeypatch, [tokens for _, tokens, _ in plain])
    drafted, run = replies(requests, overlap=False, max_running=9, chunk=64, drafting=drafting)
    assert drafted == plain
    assert run.drafting.num_drafted == 0


def test_logits_behind_a_rejected_token_may_be_anything(monkeypatch):
    request = wanted(max_tokens=30, sampling=sampled())
    (plain,), _ = replies([request], overlap=False)

    def spoil_last_rows(run):
        def spoil(tokens, logits):
            if len(tokens) > 3:
                logits[-1] = float("nan")

        run.runner.spoil = spoil

    drafting = always_drafting(monkeypatch, [plain[1]], 2)
    (drafted,), _ = replies([request], overlap=False, drafting=drafting, prepare=spoil_last_rows)
    assert drafted == plain


def test_logits_that_cannot_be_sampled_fail_their_sequence_only(monkeypatch):
    requests = [wanted((5, 6, index), max_tokens=30, sampling=SamplingParams(seed=index)) for index in (3, 4)]
    plain, _ = replies(requests, overlap=False)

    def spoil_first_row(run):
        def spoil(tokens, logits):
            if len(tokens) > 2:
                logits[0] = float("nan")

        run.runner.spoil = spoil

    drafting = always_drafting(monkeypatch, [tokens for _, tokens, _ in plain])
    (failed, drafted), _ = replies(requests, overlap=False, drafting=drafting, prepare=spoil_first_row)
    assert failed[2] != plain[0][2]
    assert drafted == plain[1]


def test_overlapped_steps_pause_for_drafts(monkeypatch):
    request = wanted(max_tokens=60, sampling=sampled())
    (plain,), _ = replies([request], overlap=True)
    drafting = always_drafting(monkeypatch, [plain[1]])
    (drafted,), run = replies([request], overlap=True, drafting=drafting)
    assert drafted == plain
    assert run.drafting.num_accepted > 40


def test_a_failing_pass_with_drafts_is_replaced_by_one_without(monkeypatch):
    request = wanted(max_tokens=30, sampling=sampled())
    plain, _ = replies([request], overlap=False)

    def fail_with_drafts(run):
        def spoil(tokens, logits):
            if len(tokens) > 1:
                raise MemoryError

        run.runner.spoil = spoil

    drafting = always_drafting(monkeypatch, [plain[0][1]])
    drafted, run = replies([request], overlap=False, drafting=drafting, prepare=fail_with_drafts)
    assert drafted == plain
    assert run.drafting.num_drafted == 0


def test_a_cancelled_sequence_releases_the_blocks_of_its_drafts(monkeypatch):
    request = wanted(max_tokens=60, sampling=sampled())
    plain, _ = replies([request], overlap=False)
    run = Run(overlap=False, drafting=always_drafting(monkeypatch, [plain[0][1]], 3))
    seq = run.add(request)
    run.steps(4)
    assert run.drafting.num_drafted
    run.scheduler.remove(seq)
    run.finish()  # no block is in use
