"""Prompts with the same beginning that arrive together: each block is computed once, and no sequence waits forever."""

import pytest

from inference_server.engine.native.scheduling.scheduler import Scheduler
from tests.inference_server.engine.native.scheduling.test_scheduler import chunks, compute, run, scheduler
from tests.support.fakes import sequence


def computed_tokens(queue: Scheduler, most: int = 50) -> tuple[int, int]:
    """Run steps until no prompt is left. Returns the numbers of computed prompt tokens and of these steps."""
    total = 0
    for number in range(most):
        step = queue.schedule()
        if not step.prefill:
            return total, number
        total += sum(chunk.end - chunk.start for chunk in step.prefill)
        compute(queue, step)
    raise AssertionError(f"prompts are not complete after {most} steps")


def test_equal_prompts_that_arrive_together_are_computed_once_but_for_the_last_block():
    seqs = [sequence(prompt_ids=list(range(42))) for _ in range(4)]
    queue = scheduler(waiting=seqs, block_size=4)
    assert computed_tokens(queue) == (42 + 3 * 2, 2)
    assert [seq.num_cached_tokens for seq in seqs] == [0, 40, 40, 40]
    assert len({tuple(seq.block_ids[:10]) for seq in seqs}) == 1
    assert queue.num_blocks_in_use == 10 + 4
    assert queue.num_hit_tokens == 120


def test_prompts_of_several_chunks_are_computed_once():
    queue = scheduler(waiting=[sequence(90) for _ in range(3)], block_size=4, prefill_chunk_tokens=10)
    assert computed_tokens(queue)[0] == 90 + 2 * 2


def test_a_prompt_that_arrives_during_the_prefill_of_an_equal_one_joins_it():
    first, second = sequence(60, name="first"), sequence(60, name="second")
    queue = scheduler(waiting=[first], block_size=4, prefill_chunk_tokens=30)
    run(queue)
    queue.add(second)
    assert chunks(run(queue)) == [("first", 30, 60)]
    assert chunks(run(queue)) == [("second", 56, 60)]
    assert second.num_cached_tokens == 56


def test_prompts_that_share_nothing_share_a_step():
    queue = scheduler(waiting=[sequence(9, start=100 * number) for number in range(4)], block_size=4)
    assert computed_tokens(queue) == (36, 1)


def test_only_the_common_beginning_is_waited_for():
    first, second = (
        sequence(0, prompt_ids=[*range(8), 50, 51, 52, 53, 54]),
        sequence(0, prompt_ids=[*range(8), *range(70, 80)]),
    )
    other = sequence(20, start=200)
    queue = scheduler(waiting=[first, second, other], block_size=4)
    step = queue.schedule()
    assert [chunk.seq for chunk in step.prefill] == [first, other]
    compute(queue, step)
    assert [(chunk.seq, chunk.start, chunk.end) for chunk in queue.schedule().prefill] == [(second, 8, 18)]


@pytest.mark.parametrize("end", ["remove", "discard", "preempt"])
def test_the_next_sequence_goes_on_if_the_first_ends(end):
    first, *others = seqs = [sequence(41) for _ in range(3)]
    queue = scheduler(waiting=seqs, block_size=4, prefill_chunk_tokens=10)
    run(queue)
    assert [seq.num_computed for seq in seqs] == [10, 0, 0]
    queue._preempt(first) if end == "preempt" else getattr(queue, end)(first)
    total, _ = computed_tokens(queue)
    assert not any(seq.is_prefilling for seq in others)
    assert total <= 41 + 3 * 4  # at most the last block of each is computed again


def test_sequences_of_accounts_that_share_nothing_do_not_wait_for_each_other():
    seqs = [sequence(20, account=account) for account in "ab"]
    queue = scheduler(waiting=seqs, block_size=4, scope_by_account=True)
    assert computed_tokens(queue) == (40, 1)


def test_without_a_prefix_cache_no_sequence_waits():
    queue = scheduler(waiting=[sequence(20) for _ in range(3)], block_size=4, max_unused_blocks=0)
    assert computed_tokens(queue) == (60, 1)


def test_batch_invariant_prompts_are_shared_in_whole_chunks():
    queue = scheduler(waiting=[sequence(30) for _ in range(3)], num_blocks=200, block_size=4, batch_invariant=True,
                      prefill_chunk_tokens=8)  # fmt: skip
    assert computed_tokens(queue)[0] == 30 + 2 * 6
    assert [seq.num_cached_tokens for seq in queue.running] == [0, 24, 24]


def test_an_interactive_request_does_not_wait_for_the_prompt_of_a_batch_request():
    batch, interactive = sequence(80, is_batch=True), sequence(80)
    queue = scheduler(waiting=[batch], block_size=4, prefill_chunk_tokens=40)
    run(queue, 2)  # a quarter of the chunk in each step
    queue.add(interactive)
    assert [chunk.seq for chunk in run(queue).prefill] == [interactive]
    assert interactive.num_cached_tokens == 20
    assert computed_tokens(queue)[0] == 20 + 4
    assert batch.num_cached_tokens == 56


def test_a_prompt_does_not_wait_for_blocks_that_a_failure_removed_from_the_cache():
    first, failed, late = (sequence(200, name=name) for name in ("first", "failed", "late"))
    queue = scheduler(waiting=[first, failed], num_blocks=200, block_size=4, prefill_chunk_tokens=20)
    run(queue, 2)
    queue.schedule()
    assert failed.block_ids[:5] == first.block_ids[:5]
    queue.discard(failed)
    queue.add(late)
    run(queue)
    assert queue._is_ready(late)


def test_a_prompt_waits_for_a_block_that_another_one_has_begun():
    first, second, other = sequence(40, name="first"), sequence(40, name="second"), sequence(30, start=200)
    queue = scheduler(waiting=[first, second, other], block_size=4, prefill_chunk_tokens=10)
    run(queue)
    assert first.num_computed == 10
    assert not queue._is_ready(second)
    assert second.num_computed == 8
