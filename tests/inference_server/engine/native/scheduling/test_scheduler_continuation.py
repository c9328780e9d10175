"""The scheduler between two steps of which the second is launched before the first one's tokens are known."""

import pytest

from inference_server.engine.native.running_batch import RunningBatch
from tests.inference_server.engine.native.scheduling.test_scheduler import compute, run, scheduler
from tests.support.fakes import sequence


def decoding(*lengths, waiting=(), **options):
    """Return a scheduler of sequences that decode, and the sequences."""
    seqs = [sequence(length, start=100 * index) for index, length in enumerate(lengths)]
    queue = scheduler(waiting=seqs, **options)
    run(queue)
    for seq in waiting:
        queue.add(seq)
    return queue, seqs


def test_a_step_may_be_continued_while_no_sequence_waits():
    queue, _ = decoding(3, 3)
    assert queue.may_continue()


def test_a_sequence_that_can_be_admitted_stops_the_continuation_and_stays_in_the_queue():
    newcomer = sequence(3, start=500)
    queue, _ = decoding(3, 3, waiting=[newcomer])
    in_use = queue.num_blocks_in_use
    assert not queue.may_continue()
    assert queue.num_blocks_in_use == in_use and not newcomer.block_ids
    assert queue.schedule().admitted == [newcomer]


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"max_running_seqs": 2}, id="no slot"),
        pytest.param({"num_blocks": 4}, id="no blocks"),
        pytest.param({"max_account_seqs": 2}, id="no slot for the account"),
    ],
)
def test_a_sequence_that_cannot_be_admitted_does_not_stop_the_continuation(options):
    queue, _ = decoding(3, 3, waiting=[sequence(9, start=500)], **options)
    assert queue.may_continue()
    assert not queue.schedule().admitted


def test_all_sequences_or_none_get_another_block():
    queue, seqs = decoding(3, 3, num_blocks=3)
    assert not queue.extend(seqs)
    assert [len(seq.block_ids) for seq in seqs] == [1, 1]
    assert queue.extend(seqs[:1])
    assert [len(seq.block_ids) for seq in seqs] == [2, 1]


def test_a_block_that_decoding_fills_is_registered_for_later_prompts():
    queue, (seq,) = decoding(3)
    queue.decoded([seq])
    seq.token_ids.append(0)
    successor = sequence(prompt_ids=[*seq.token_ids, 9])
    queue.add(successor)
    queue.schedule()
    assert successor.num_cached_tokens == 4


def test_a_batch_counts_positions_and_blocks_ahead_of_the_known_tokens():
    queue, seqs = decoding(3, 2)
    queue.schedule()
    batch = RunningBatch.first(seqs)
    assert [(token.position, token.token_id) for token in batch.tokens] == [(3, 0), (2, 0)]
    assert batch.next(queue, has_changed=True) is batch
    assert [(token.position, token.token_id) for token in batch.tokens] == [(4, -1), (3, -2)]
    assert [len(seq.block_ids) for seq in seqs] == [2, 1]


def test_a_batch_refers_to_the_rows_of_the_step_before_when_a_row_is_gone():
    queue, seqs = decoding(3, 2, 1)
    compute(queue, queue.schedule())
    queue.schedule()
    batch = RunningBatch.first(seqs)
    queue.remove(seqs[0])
    smaller = batch.next(queue, has_changed=True)
    assert smaller.seqs == seqs[1:]
    assert [(token.position, token.token_id) for token in smaller.tokens] == [(4, -2), (3, -3)]
    assert smaller.next(queue, has_changed=False) is smaller
    assert [(token.position, token.token_id) for token in smaller.tokens] == [(5, -1), (4, -2)]


def test_a_batch_has_no_successor_when_blocks_run_out():
    queue, seqs = decoding(4, 4, num_blocks=4)
    queue.schedule()
    batch = RunningBatch.first(seqs)
    for _ in range(3):
        assert batch.next(queue, has_changed=False) is batch
    assert batch.next(queue, has_changed=False) is None


def test_a_batch_has_no_successor_when_no_row_is_left():
    queue, seqs = decoding(4, 4)
    batch = RunningBatch.first(seqs)
    for seq in seqs:
        queue.remove(seq)
    assert batch.next(queue, has_changed=True) is None
