"""The scheduler: admission, blocks, the prompt tokens of a step, cancelling at any moment, preemption."""

import pytest

from inference_server.engine.native.scheduling.block_pool import BlockPool
from inference_server.engine.native.scheduling.scheduler import Scheduler
from inference_server.engine.native.scheduling.step_plan import Policy, StepPlan
from tests.support.fakes import sequence


def scheduler(
    max_running_seqs=4,
    prefill_chunk_tokens=100,
    waiting=(),
    num_blocks=100,
    block_size=4,
    idle_chunk_tokens=None,
    max_unused_blocks=None,
    **policy,
):
    policy = Policy(
        max_running_seqs=max_running_seqs,
        prefill_chunk_tokens=prefill_chunk_tokens,
        idle_chunk_tokens=idle_chunk_tokens or prefill_chunk_tokens,
        **policy,
    )
    pool = BlockPool(num_blocks=num_blocks, block_size=block_size, max_unused_blocks=max_unused_blocks)
    scheduler = Scheduler(pool, policy)
    for seq in waiting:
        scheduler.add(seq)
    return scheduler


def compute(queue: Scheduler, step: StepPlan):
    """Mark all tokens of a step as computed."""
    for seq in step.decode:
        queue.computed(seq, seq.num_computed + 1)
        seq.token_ids.append(0)
    for chunk in step.prefill:
        queue.computed(chunk.seq, chunk.end)
        if chunk.is_last:
            chunk.seq.token_ids.append(0)


def run(queue: Scheduler, num_steps: int = 1) -> StepPlan:
    """Compute `num_steps` steps and return the last."""
    for _ in range(num_steps):
        step = queue.schedule()
        compute(queue, step)
    return step


def chunks(step: StepPlan):
    return [(chunk.seq.request.request_id, chunk.start, chunk.end) for chunk in step.prefill]


def test_requests_are_admitted_in_the_order_of_arrival():
    seqs = [sequence() for _ in range(5)]
    queue = scheduler(max_running_seqs=2, waiting=seqs)
    assert queue.schedule().admitted == seqs[:2]
    assert list(queue.waiting) == seqs[2:]
    queue.remove(seqs[1])
    assert queue.schedule().admitted == [seqs[2]]


def test_no_block_is_given_to_two_sequences():
    seqs = [sequence(5 + n, start=100 * n) for n in range(40)]
    queue = scheduler(max_running_seqs=3, num_blocks=40, waiting=seqs)
    while not queue.is_idle:
        run(queue)
        held = [block for seq in queue.running for block in seq.block_ids]
        assert len(held) == len(set(held))
        queue.remove(queue.running[len(queue.waiting) % len(queue.running)])
    assert not any(seq.block_ids for seq in seqs)


def test_the_prefill_budget_is_shared_in_the_order_of_admission():
    queue = scheduler(
        prefill_chunk_tokens=10,
        waiting=[sequence(4, name="a"), sequence(3, name="b"), sequence(9, name="c", start=50)],
    )
    step = queue.schedule()
    assert chunks(step) == [("a", 0, 4), ("b", 0, 3), ("c", 0, 3)]
    assert [chunk.is_last for chunk in step.prefill] == [True, True, False]
    compute(queue, step)
    assert chunks(queue.schedule()) == [("c", 3, 9)]


def test_a_long_prompt_is_computed_in_adjoining_chunks():
    queue = scheduler(prefill_chunk_tokens=10, waiting=[sequence(25, name="long")])
    seen = []
    for _ in range(3):
        step = queue.schedule()
        seen += chunks(step)
        assert step.decode == []
        compute(queue, step)
    assert seen == [("long", 0, 10), ("long", 10, 20), ("long", 20, 25)]
    assert chunks(queue.schedule()) == []


@pytest.mark.parametrize(("num_prompt_tokens", "num_steps"), [(9, 1), (10, 1), (11, 2), (20, 2), (21, 3)])
def test_a_prompt_that_ends_on_a_chunk_border_needs_no_further_step(num_prompt_tokens, num_steps):
    seq = sequence(num_prompt_tokens)
    queue = scheduler(prefill_chunk_tokens=10, waiting=[seq])
    for _ in range(num_steps - 1):
        run(queue)
    assert seq.is_prefilling
    (chunk,) = queue.schedule().prefill
    assert chunk.is_last


def test_a_sequence_decodes_in_the_step_after_its_prompt_is_complete():
    seq = sequence(5)
    queue = scheduler(waiting=[seq])
    run(queue)
    step = queue.schedule()
    assert (step.decode, step.prefill) == ([seq], [])


def test_running_sequences_decode_while_a_long_prompt_is_computed():
    running, long = sequence(1), sequence(1000)
    queue = scheduler(num_blocks=300, prefill_chunk_tokens=16, waiting=[running])
    run(queue)
    queue.add(long)
    for _ in range(5):
        step = queue.schedule()
        assert step.decode == [running]
        assert sum(chunk.end - chunk.start for chunk in step.prefill) == 16
        compute(queue, step)


def test_a_request_cancelled_while_waiting_is_never_admitted():
    running, cancelled, next_one = sequence(), sequence(), sequence()
    queue = scheduler(max_running_seqs=1, waiting=[running, cancelled, next_one])
    queue.schedule()
    queue.remove(cancelled)
    queue.remove(running)
    assert queue.schedule().admitted == [next_one]


@pytest.mark.parametrize("num_steps", [1, 4], ids=["prefilling", "decoding"])
def test_cancelling_a_running_sequence_frees_its_slot(num_steps):
    cancelled, next_one = sequence(25), sequence(5)
    queue = scheduler(max_running_seqs=1, prefill_chunk_tokens=10, waiting=[cancelled, next_one])
    for _ in range(num_steps):
        run(queue)
    assert cancelled.is_prefilling == (num_steps == 1)
    queue.remove(cancelled)
    step = queue.schedule()
    assert step.admitted == [next_one]
    assert [chunk.seq for chunk in step.prefill] == [next_one]
    assert step.decode == []


@pytest.mark.parametrize("was_admitted", [True, False])
def test_removing_twice_frees_one_slot(was_admitted):
    seq = sequence()
    queue = scheduler(max_running_seqs=1, waiting=[seq])
    if was_admitted:
        queue.schedule()
    queue.remove(seq)
    queue.remove(seq)
    assert queue.is_idle
    later = [sequence(), sequence()]
    for other in later:
        queue.add(other)
    assert queue.schedule().admitted == later[:1]


def test_it_is_idle_only_without_waiting_and_running_sequences():
    seq = sequence()
    queue = scheduler()
    assert queue.is_idle
    queue.add(seq)
    assert not queue.is_idle
    queue.schedule()
    assert not queue.is_idle
    queue.remove(seq)
    assert queue.is_idle


def test_prefill_chunks_are_larger_without_decoding():
    long, short = sequence(50, name="long"), sequence(1, start=500, name="short")
    queue = scheduler(prefill_chunk_tokens=10, idle_chunk_tokens=20, waiting=[long])
    assert chunks(run(queue)) == [("long", 0, 20)]
    queue.add(short)
    assert chunks(run(queue)) == [("long", 20, 40)]
    assert chunks(run(queue)) == [("long", 40, 50), ("short", 0, 1)]


def test_more_sequences_in_prefill_enlarge_the_step():
    first = sequence(1)
    queue = scheduler(num_blocks=600, prefill_chunk_tokens=10, idle_chunk_tokens=110, waiting=[first])
    run(queue)
    queue.add(sequence(500, start=500))
    assert sum(chunk.end - chunk.start for chunk in run(queue).prefill) == 30
    for number in range(2):
        queue.add(sequence(500, start=2000 + 500 * number))
    assert sum(chunk.end - chunk.start for chunk in run(queue).prefill) == 60


def test_only_the_rest_after_a_cached_prefix_is_computed():
    first, second = sequence(14, name="first"), sequence(30, name="second")
    queue = scheduler(block_size=4, waiting=[first])
    run(queue)
    queue.add(second)
    assert chunks(queue.schedule()) == [("second", 12, 30)]
    assert second.num_cached_tokens == 12
    assert second.block_ids[:3] == first.block_ids[:3]


def test_the_last_prompt_token_is_computed_even_if_cached():
    first, again = sequence(12, name="first"), sequence(12, name="again")
    queue = scheduler(block_size=4, waiting=[first])
    run(queue)
    queue.add(again)
    assert chunks(queue.schedule()) == [("again", 8, 12)]


def test_the_reply_of_a_finished_sequence_is_found_by_the_next_turn():
    first = sequence(6, name="first")
    queue = scheduler(block_size=4, waiting=[first])
    run(queue, 7)  # 6 prompt tokens, then six computed zeros
    queue.remove(first)
    turn = sequence(0, name="turn", prompt_ids=[*range(6), 0, 0, 0, 0, 0, 0, 77, 78])
    queue.add(turn)
    assert chunks(queue.schedule()) == [("turn", 12, 14)]


def test_accounts_share_nothing_if_the_cache_is_scoped_by_account():
    first, stranger = sequence(9, account="a"), sequence(9, account="b")
    friend = sequence(9, account="a")
    queue = scheduler(block_size=4, scope_by_account=True, waiting=[first])
    run(queue)
    queue.add(stranger)
    queue.add(friend)
    queue.schedule()
    assert (stranger.num_cached_tokens, friend.num_cached_tokens) == (0, 8)


def test_blocks_of_a_failed_sequence_are_not_reused():
    failed, later = sequence(9), sequence(9)
    queue = scheduler(block_size=4, waiting=[failed])
    run(queue)
    queue.discard(failed)
    queue.add(later)
    queue.schedule()
    assert later.num_cached_tokens == 0


def test_a_sequence_waits_until_there_are_blocks_for_its_prompt():
    first, second = sequence(8), sequence(8, start=50)
    queue = scheduler(num_blocks=4, block_size=4, waiting=[first, second])
    assert queue.schedule().admitted == [first]
    assert queue.schedule().admitted == []
    queue.remove(first)
    assert queue.schedule().admitted == [second]


def test_the_last_admitted_is_preempted_when_blocks_run_out():
    old, young, waiting = sequence(4), sequence(4, start=50), sequence(4, start=90)
    queue = scheduler(num_blocks=4, block_size=4, waiting=[old, young])
    run(queue, 2)  # each has two blocks now
    queue.add(waiting)
    run(queue, 3)
    assert queue.running == [old, young]
    run(queue)
    assert queue.running == [old]
    assert list(queue.waiting) == [young, waiting]
    assert queue.num_preemptions == 1


def test_a_preempted_sequence_computes_all_its_tokens_again():
    old, young = sequence(4), sequence(4, start=50)
    queue = scheduler(num_blocks=4, block_size=4, waiting=[old, young])
    run(queue, 6)
    tokens = list(young.token_ids)
    assert not young.block_ids
    queue.remove(old)
    step = queue.schedule()
    assert [chunk.seq for chunk in step.prefill] == [young]
    assert step.prefill[-1].end == len(tokens)
    compute(queue, step)
    assert young.token_ids == [*tokens, 0]
    assert queue.schedule().decode == [young]


def test_batch_invariant_chunks_end_at_fixed_positions():
    first, second = sequence(25, name="first"), sequence(25, start=100, name="second")
    queue = scheduler(prefill_chunk_tokens=8, batch_invariant=True, waiting=[first, second])
    seen = [chunk for _ in range(9) for chunk in chunks(run(queue))]
    borders = [(0, 8), (8, 16), (16, 24), (24, 25)]
    for name in ("first", "second"):
        assert [(start, end) for owner, start, end in seen if owner == name] == borders


def test_batch_invariant_prompts_begin_at_chunk_borders():
    first, second = sequence(25, name="first"), sequence(25, name="second")
    queue = scheduler(block_size=4, prefill_chunk_tokens=8, batch_invariant=True, waiting=[first])
    run(queue, 4)
    queue.remove(first)
    queue.add(second)
    assert chunks(queue.schedule()) == [("second", 24, 25)]
    other = sequence(22, name="other")
    queue.add(other)
    assert ("other", 16, 22) in chunks(queue.schedule())


def test_draft_tokens_get_blocks_only_if_enough_stay_free():
    seqs = [sequence(4, start=100 * number) for number in range(2)]
    queue = scheduler(num_blocks=8, waiting=seqs)
    run(queue)
    queue.schedule()  # both have 4 computed tokens and two blocks
    assert queue.reserve(seqs[0], 3) == 3
    assert queue.reserve(seqs[0], 4) == 4
    assert queue.reserve(seqs[0], 30) == 11  # two of eight blocks stay free
    assert queue.reserve(seqs[1], 30) == 3
    queue.schedule()
    assert queue.num_preemptions == 0
