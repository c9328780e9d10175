"""Batch requests: they use the slots, blocks and steps that interactive requests leave, and their replies stay the same."""

import pytest

from inference_server.engine.native.scheduling.scheduler import Scheduler
from inference_server.settings.server import Settings
from tests.inference_server.engine.native.scheduling.test_scheduler import run, scheduler
from tests.inference_server.engine.native.stepping import Run, sampled, wanted
from tests.support.fakes import sequence


def batch(*lengths, **options):
    return [sequence(length, start=100 * (index + 1), is_batch=True, **options) for index, length in enumerate(lengths)]


def ids(seqs):
    return [seq.request.request_id for seq in seqs]


# Order.


def test_interactive_requests_are_admitted_before_batch_requests_that_wait_longer():
    interactive = [sequence(name=f"i{n}") for n in range(2)]
    queue = scheduler(max_running_seqs=3, waiting=[*batch(1, 1, name="b"), *interactive])
    assert ids(queue.schedule().admitted) == ["i0", "i1", "b"]


def test_few_batch_requests_run_together():
    queue = scheduler(max_running_seqs=4, max_batch_seqs=2, waiting=batch(1, 1, 1))
    assert len(queue.schedule().admitted) == 2
    queue.remove(queue.running[0])
    assert len(queue.schedule().admitted) == 1


def test_batch_requests_are_fair_across_accounts():
    seqs = [sequence(name=account, account=account, is_batch=True) for account in "aaab"]
    queue = scheduler(max_running_seqs=4, max_batch_seqs=2, waiting=[*seqs, sequence(name="i", account="b")])
    assert ids(queue.schedule().admitted) == ["i", "a", "b"]


def test_an_account_at_its_limit_leaves_slots_to_batch_requests():
    seqs = [sequence(name=f"i{n}", account="a") for n in range(2)]
    queue = scheduler(max_running_seqs=4, max_account_seqs=1, waiting=[*seqs, *batch(1, name="b", account="a")])
    assert ids(queue.schedule().admitted) == ["i0", "b"]


# Steps.


def test_batch_sequences_pause_while_an_interactive_prompt_is_computed():
    decoding, prefilling = batch(3, 90)
    queue = scheduler(waiting=[decoding, prefilling], prefill_chunk_tokens=40, idle_chunk_tokens=40)
    run(queue, 2)
    queue.add(interactive := sequence(60))
    for _ in range(2):
        step = run(queue)
        assert (step.decode, [chunk.seq for chunk in step.prefill]) == ([], [interactive])
    step = run(queue)
    assert (step.decode, [chunk.seq for chunk in step.prefill]) == ([decoding, interactive], [prefilling])


def test_prompts_of_batch_requests_are_computed_in_small_chunks():
    queue = scheduler(waiting=batch(90), prefill_chunk_tokens=40, idle_chunk_tokens=200)
    assert [chunk.end - chunk.start for chunk in run(queue).prefill] == [10]


def test_an_interactive_request_waits_for_one_small_step_of_a_large_batch_and_then_has_a_step_alone():
    settings = Settings()
    prefill = settings.prefill_tokens("cpu")
    queue = scheduler(
        max_running_seqs=settings.max_running_seqs,
        max_batch_seqs=settings.batch_seqs("cpu"),
        prefill_chunk_tokens=prefill.chunk,
        idle_chunk_tokens=prefill.idle,
        num_blocks=2000,
        block_size=32,
        waiting=[sequence(20 + n, start=1000 * n, is_batch=True) for n in range(200)],
    )
    for _ in range(300):
        assert 0 < run(queue).num_tokens <= 16
        for seq in [seq for seq in queue.running if seq.num_completion_tokens >= 20]:
            queue.remove(seq)
    queue.add(interactive := sequence(200, start=10**6))
    step = run(queue)
    assert (step.decode, [(chunk.seq, chunk.end) for chunk in step.prefill]) == ([], [(interactive, 200)])


# Slots and blocks.


def test_an_interactive_request_takes_the_slot_of_the_newest_batch_request():
    old, young = batch(3, 5)
    queue = scheduler(max_running_seqs=2, waiting=[old, young])
    run(queue, 4)
    tokens = list(young.token_ids)
    queue.add(interactive := sequence(4))
    step = run(queue)
    assert (step.admitted, queue.running, list(queue.waiting)) == ([interactive], [old, interactive], [young])
    queue.remove(interactive)
    run(queue, 2)
    assert queue.running == [old, young]
    assert young.token_ids[: len(tokens)] == tokens and len(young.token_ids) == len(tokens) + 2


def test_an_interactive_request_takes_the_blocks_of_batch_requests():
    queue = scheduler(num_blocks=8, block_size=4, waiting=batch(12, 12), max_unused_blocks=0)
    run(queue)
    queue.add(interactive := sequence(12))
    assert run(queue).admitted == [interactive]
    assert queue.num_preemptions == 1


def test_no_batch_sequence_is_preempted_if_that_gives_too_few_blocks():
    queue = scheduler(num_blocks=8, block_size=4, waiting=[sequence(12), *batch(4)])
    run(queue, 2)
    queue.add(sequence(20, start=500))
    assert run(queue).admitted == []
    assert queue.num_preemptions == 0


def test_blocks_of_the_prefix_cache_count_once_in_the_decision_to_preempt_a_batch_sequence():
    earlier, running, long = sequence(32), sequence(32, start=1000), sequence(72)
    (patient,) = batch(16)
    queue = scheduler(waiting=[earlier], num_blocks=20, block_size=4, prefill_chunk_tokens=200)
    run(queue)
    queue.remove(earlier)
    queue.add(running)
    queue.add(patient)
    queue.schedule()
    queue.add(long)
    assert queue.schedule().admitted == []
    assert queue.running == [running, patient]


def test_batch_sequences_are_preempted_before_interactive_ones_that_are_newer():
    queue = scheduler(num_blocks=5, block_size=4, waiting=batch(3))
    run(queue)
    for start in (50, 90):
        queue.add(sequence(3, start=start))
    run(queue, 4)
    assert queue.num_preemptions == 1
    assert not any(seq.request.is_batch for seq in queue.running)


def test_a_batch_request_preempts_nothing():
    queue = scheduler(max_running_seqs=1, waiting=[sequence(3)])
    run(queue)
    for seq in batch(3):
        queue.add(seq)
    run(queue, 3)
    assert queue.num_preemptions == 0


def test_with_batch_invariance_batch_sequences_keep_their_slots():
    queue = scheduler(max_running_seqs=2, max_batch_seqs=1, num_blocks=200, batch_invariant=True, waiting=batch(3, 3))
    run(queue)
    for start in (500, 600):
        queue.add(sequence(3, start=start))
    assert len(run(queue).admitted) == 1
    assert queue.num_preemptions == 0


@pytest.mark.parametrize(("arriving", "may_continue"), [(sequence(3), False), (batch(3)[0], True)])
def test_a_step_in_flight_ends_the_continuation_for_an_interactive_request_without_a_slot(arriving, may_continue):
    queue = scheduler(max_running_seqs=2, waiting=batch(3, 3))
    run(queue)
    queue.add(arriving)
    assert queue.may_continue() == may_continue


def test_batch_requests_make_progress_beside_interactive_requests_that_do_not_fill_the_slots():
    def arrivals(queue: Scheduler, step: int) -> None:
        if step % 3 == 0:  # a new prompt pauses the batch in every third step
            queue.add(sequence(3, start=1000 + 10 * step))
        for seq in [seq for seq in queue.running if not seq.request.is_batch and seq.num_completion_tokens > 4]:
            queue.remove(seq)

    waiting = batch(20, 20, 20)
    queue = scheduler(max_running_seqs=4, max_batch_seqs=1, waiting=waiting, num_blocks=300)
    for step in range(120):
        arrivals(queue, step)
        run(queue)
        for seq in [seq for seq in queue.running if seq.request.is_batch and seq.num_completion_tokens >= 8]:
            queue.remove(seq)
    assert all(seq.num_completion_tokens == 8 for seq in waiting)


# Replies.


@pytest.mark.parametrize("overlap", [False, True])
def test_replies_of_preempted_batch_requests_are_those_of_a_server_without_other_requests(overlap):
    def requests():
        for seed in range(3):
            yield wanted((5, 6, 7, 8 + seed), sampling=sampled(seed, min_p=0.02), max_tokens=25, is_batch=True)

    alone = []
    for request in requests():
        single = Run(overlap=overlap)
        seq = single.add(request)
        single.finish()
        alone.append(single.reply(seq)[0])
    shared = Run(overlap=overlap, max_running=2)
    seqs = [shared.add(request) for request in requests()]
    for number in range(12):
        shared.steps(3)
        shared.add(wanted((9, 9, 9, number), sampling=sampled(number), max_tokens=4))
    shared.finish()
    assert [shared.reply(seq)[0] for seq in seqs] == alone
    assert shared.scheduler.num_preemptions > 0
