"""Fair scheduling: accounts are served round-robin, each with a maximum number of slots."""

from inference_server.engine.native.scheduling.scheduler import Scheduler
from tests.inference_server.engine.native.scheduling.test_scheduler import run, scheduler
from tests.support.fakes import sequence


def waiting(**counts: int):
    return [sequence(name=f"{account}{n}", account=account) for account, count in counts.items() for n in range(count)]


def free_one(queue: Scheduler) -> list[str]:
    """Free one slot. Returns the ids of the requests that get it."""
    queue.remove(queue.running[0])
    return [seq.request.request_id for seq in queue.schedule().admitted]


def test_accounts_are_served_round_robin():
    queue = scheduler(max_running_seqs=1, waiting=waiting(a=4, b=2, c=1))
    order = [seq.request.request_id for seq in queue.schedule().admitted]
    for _ in range(6):
        order += free_one(queue)
    assert order == ["a0", "b0", "c0", "a1", "b1", "a2", "a3"]


def test_a_new_account_gets_the_next_free_slot():
    queue = scheduler(max_running_seqs=2, waiting=waiting(heavy=100))
    queue.schedule()
    late = sequence(name="late", account="other")
    queue.add(late)
    assert free_one(queue) + free_one(queue) == ["late", "heavy2"]
    assert late.admission_position == 1


def test_an_account_with_fewer_slots_gets_the_next_one():
    queue = scheduler(max_running_seqs=4, waiting=waiting(heavy=100))
    queue.schedule()
    for seq in waiting(light=4):
        queue.add(seq)
    # Each time, the heavy account frees a slot. After both have two, the heavy account has fewer.
    assert [free_one(queue)[0] for _ in range(4)] == ["light0", "light1", "heavy4", "heavy5"]


def test_slots_beyond_an_accounts_cap_go_to_others():
    queue = scheduler(max_running_seqs=4, max_account_seqs=2, waiting=waiting(a=4, b=1))
    assert [seq.request.request_id for seq in queue.schedule().admitted] == ["a0", "b0", "a1"]
    assert not queue.schedule().admitted
    assert free_one(queue) == ["a2"]


def test_a_preempted_sequence_is_first():
    queue = scheduler(max_running_seqs=3, num_blocks=4, block_size=4, waiting=[sequence(7, account="a")])
    run(queue)
    queue.add(sequence(3, name="b", account="b", start=50))
    run(queue)
    queue.add(sequence(1, name="c", account="c", start=90))
    run(queue, 4)
    assert queue.num_preemptions == 1
    assert [seq.request.request_id for seq in queue.waiting][0] == "b"


def test_a_cancelled_request_leaves_nothing_of_its_account_behind():
    queue = scheduler(max_running_seqs=1, waiting=waiting(a=2, b=1))
    queue.schedule()
    for seq in list(queue.waiting):
        queue.remove(seq)
    assert (len(queue.waiting), list(queue.waiting)) == (0, [])


def test_out_of_memory_halves_slots_and_chunks():
    queue = scheduler(max_running_seqs=4, waiting=waiting(a=6))
    step = run(queue)
    assert queue.shrink(step.admitted)
    assert [seq.request.request_id for seq in queue.schedule().admitted] == ["a0", "a1"]
    run(queue, 200)
    assert len(queue.running) == 4


def test_the_minimum_is_one_sequence_in_small_chunks():
    queue = scheduler(max_running_seqs=4, waiting=waiting(a=1))
    assert queue.shrink(run(queue).admitted)
    assert not queue.shrink(run(queue).admitted)
