"""Which sequences run next: admission, slots, the prompt tokens of a step, cancelling at any moment."""

import pytest

from inference_server.scheduler import Scheduler, Step
from tests.inference_server.fakes import sequence


def scheduler(num_slots=4, prefill_chunk_tokens=100, waiting=()):
    scheduler = Scheduler(num_slots=num_slots, prefill_chunk_tokens=prefill_chunk_tokens)
    for seq in waiting:
        scheduler.add(seq)
    return scheduler


def compute(step: Step):
    """What the model would have done with a step."""
    for seq in step.decode:
        seq.num_computed += 1
        seq.token_ids.append(0)
    for chunk in step.prefill:
        chunk.seq.num_computed = chunk.end
        if chunk.completes_prompt:
            chunk.seq.token_ids.append(0)


def chunks(step: Step):
    return [(chunk.seq.request.request_id, chunk.start, chunk.end) for chunk in step.prefill]


def test_the_first_to_come_are_admitted_first():
    seqs = [sequence() for _ in range(5)]
    queue = scheduler(num_slots=2, waiting=seqs)
    assert queue.schedule().admitted == seqs[:2]
    assert list(queue.waiting) == seqs[2:]
    queue.remove(seqs[1])
    assert queue.schedule().admitted == [seqs[2]]


def test_the_lowest_free_slot_is_taken_first():
    seqs = [sequence() for _ in range(5)]
    queue = scheduler(num_slots=4, waiting=seqs[:4])
    queue.schedule()
    assert [seq.slot for seq in seqs[:4]] == [0, 1, 2, 3]
    for seq in (seqs[2], seqs[0], seqs[3]):
        queue.remove(seq)
    queue.add(seqs[4])
    queue.schedule()
    assert seqs[4].slot == 0


def test_a_slot_is_reused_in_the_step_after_its_sequence_finished():
    first, second = sequence(), sequence()
    queue = scheduler(num_slots=1, waiting=[first, second])
    compute(queue.schedule())
    assert queue.schedule().admitted == []
    queue.remove(first)
    step = queue.schedule()
    assert step.admitted == [second]
    assert (first.slot, second.slot) == (None, 0)
    assert [chunk.seq for chunk in step.prefill] == [second]


def test_no_slot_is_given_to_two_sequences():
    seqs = [sequence() for _ in range(40)]
    queue = scheduler(num_slots=3, waiting=seqs)
    while not queue.is_idle:
        compute(queue.schedule())
        assert len({seq.slot for seq in queue.running}) == len(queue.running) <= 3
        queue.remove(queue.running[len(queue.waiting) % len(queue.running)])
    assert all(seq.slot is None and seq.num_computed >= 1 for seq in seqs)


def test_the_prefill_budget_is_shared_in_the_order_of_admission():
    queue = scheduler(
        prefill_chunk_tokens=10, waiting=[sequence(4, name="a"), sequence(3, name="b"), sequence(9, name="c")]
    )
    step = queue.schedule()
    assert chunks(step) == [("a", 0, 4), ("b", 0, 3), ("c", 0, 3)]
    assert [chunk.completes_prompt for chunk in step.prefill] == [True, True, False]
    compute(step)
    assert chunks(queue.schedule()) == [("c", 3, 9)]


def test_a_long_prompt_is_computed_in_adjoining_chunks():
    queue = scheduler(prefill_chunk_tokens=10, waiting=[sequence(25, name="long")])
    seen = []
    for _ in range(3):
        step = queue.schedule()
        seen += chunks(step)
        assert step.decode == []
        compute(step)
    assert seen == [("long", 0, 10), ("long", 10, 20), ("long", 20, 25)]
    assert chunks(queue.schedule()) == []


@pytest.mark.parametrize(("num_prompt_tokens", "num_steps"), [(9, 1), (10, 1), (11, 2), (20, 2), (21, 3)])
def test_a_prompt_that_ends_on_a_chunk_border_needs_no_further_step(num_prompt_tokens, num_steps):
    seq = sequence(num_prompt_tokens)
    queue = scheduler(prefill_chunk_tokens=10, waiting=[seq])
    for _ in range(num_steps - 1):
        compute(queue.schedule())
    assert seq.is_prefilling
    (chunk,) = queue.schedule().prefill
    assert chunk.completes_prompt


def test_a_sequence_decodes_in_the_step_after_its_prompt_is_complete():
    seq = sequence(5)
    queue = scheduler(waiting=[seq])
    compute(queue.schedule())
    step = queue.schedule()
    assert (step.decode, step.prefill) == ([seq], [])


def test_running_sequences_decode_while_a_long_prompt_is_computed():
    running, long = sequence(1), sequence(1000)
    queue = scheduler(prefill_chunk_tokens=16, waiting=[running])
    compute(queue.schedule())
    queue.add(long)
    for _ in range(5):
        step = queue.schedule()
        assert step.decode == [running]
        assert sum(chunk.end - chunk.start for chunk in step.prefill) == 16
        compute(step)


def test_decoding_is_ordered_by_slot_and_not_by_admission():
    seqs = [sequence() for _ in range(3)]
    queue = scheduler(num_slots=3, waiting=seqs)
    compute(queue.schedule())
    queue.remove(seqs[0])
    late = sequence()
    queue.add(late)
    compute(queue.schedule())
    assert queue.running == [seqs[1], seqs[2], late]
    assert queue.schedule().decode == [late, seqs[1], seqs[2]]


def test_one_cancelled_while_waiting_is_never_admitted():
    running, cancelled, next_one = sequence(), sequence(), sequence()
    queue = scheduler(num_slots=1, waiting=[running, cancelled, next_one])
    queue.schedule()
    queue.remove(cancelled)
    queue.remove(running)
    assert queue.schedule().admitted == [next_one]


@pytest.mark.parametrize("num_steps", [1, 4], ids=["prefilling", "decoding"])
def test_one_cancelled_while_running_frees_its_slot(num_steps):
    cancelled, next_one = sequence(25), sequence(5)
    queue = scheduler(num_slots=1, prefill_chunk_tokens=10, waiting=[cancelled, next_one])
    for _ in range(num_steps):
        compute(queue.schedule())
    assert cancelled.is_prefilling == (num_steps == 1)
    queue.remove(cancelled)
    step = queue.schedule()
    assert step.admitted == [next_one]
    assert [chunk.seq for chunk in step.prefill] == [next_one]
    assert step.decode == []


@pytest.mark.parametrize("was_admitted", [True, False])
def test_removing_twice_frees_one_slot(was_admitted):
    seq = sequence()
    queue = scheduler(num_slots=1, waiting=[seq])
    if was_admitted:
        queue.schedule()
    queue.remove(seq)
    queue.remove(seq)
    assert queue.is_idle
    later = [sequence(), sequence()]
    for other in later:
        queue.add(other)
    assert queue.schedule().admitted == later[:1]


def test_it_is_idle_only_when_nobody_waits_or_runs():
    seq = sequence()
    queue = scheduler()
    assert queue.is_idle
    queue.add(seq)
    assert not queue.is_idle
    queue.schedule()
    assert not queue.is_idle
    queue.remove(seq)
    assert queue.is_idle
