"""The scheduler under any order of events: no block has two owners, and all blocks are released at the end."""

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from inference_server.attention.kv_cache import SCRATCH_BLOCK
from inference_server.engine.native.scheduling.block_pool import BlockPool
from inference_server.engine.native.scheduling.scheduler import Scheduler
from inference_server.engine.native.scheduling.step_plan import Policy
from inference_server.engine.sequence import Sequence
from tests.inference_server.engine.native.scheduling.test_scheduler import compute
from tests.support.fakes import sequence

NUM_BLOCKS, BLOCK_SIZE, MAX_RUNNING, MAX_OF_ACCOUNT = 12, 4, 4, 3
LONGEST = (NUM_BLOCKS - 2) * BLOCK_SIZE  # a single sequence never lacks blocks


class SchedulerStates(RuleBasedStateMachine):
    """A scheduler with prompts that share prefixes, and too few blocks, so that sequences are preempted."""

    seqs = Bundle("seqs")

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(num_blocks=NUM_BLOCKS, block_size=BLOCK_SIZE, max_unused_blocks=NUM_BLOCKS // 2)
        policy = Policy(
            max_running_seqs=MAX_RUNNING,
            prefill_chunk_tokens=5,
            idle_chunk_tokens=10,
            max_account_seqs=MAX_OF_ACCOUNT,
            max_batch_seqs=MAX_RUNNING - 1,
        )
        self.scheduler = Scheduler(self.pool, policy)
        self.alive: list[Sequence] = []

    @rule(
        target=seqs,
        length=st.integers(1, 20),
        start=st.sampled_from((0, 0, 100)),
        account=st.sampled_from("ab"),
        is_batch=st.booleans(),
    )
    def add(self, length: int, start: int, account: str, is_batch: bool) -> Sequence:
        seq = sequence(length, start=start, account=account, is_batch=is_batch)
        self.scheduler.add(seq)
        self.alive.append(seq)
        return seq

    @rule()
    def step(self) -> None:
        step = self.scheduler.schedule()
        for seq in step.admitted:
            seq.admitted = seq.admitted or 1.0
        # Every computed token has a block.
        for seq in step.decode:
            assert seq.num_computed + 1 <= len(seq.block_ids) * BLOCK_SIZE
        assert step.num_tokens or not self.scheduler.running  # no sequence waits for another one forever
        for chunk in step.prefill:
            assert chunk.start == chunk.seq.num_computed < chunk.end <= len(chunk.seq.block_ids) * BLOCK_SIZE
        compute(self.scheduler, step)
        for seq in [seq for seq in self.scheduler.running if len(seq.token_ids) >= LONGEST]:
            self.end(seq)

    @rule(seq=consumes(seqs))
    def end(self, seq: Sequence) -> None:
        """Finish or cancel a sequence in any state, possibly for a second time."""
        self.scheduler.remove(seq)
        if seq in self.alive:
            self.alive.remove(seq)

    @rule(seq=consumes(seqs))
    def fail(self, seq: Sequence) -> None:
        self.scheduler.discard(seq)
        if seq in self.alive:
            self.alive.remove(seq)

    @rule()
    def run_out_of_memory(self) -> None:
        self.scheduler.shrink(list(self.scheduler.running))

    @invariant()
    def every_sequence_runs_or_waits_until_it_ends(self) -> None:
        placed = [*self.scheduler.running, *self.scheduler.waiting]
        assert Counter(map(id, placed)) == Counter(map(id, self.alive))

    @invariant()
    def no_more_run_than_may(self) -> None:
        assert len(self.scheduler.running) <= MAX_RUNNING
        assert all(not seq.block_ids for seq in self.scheduler.waiting)

    @invariant()
    def a_block_has_more_than_one_owner_only_for_the_same_tokens(self) -> None:
        content: dict[int, list[int]] = {}
        for seq in self.scheduler.running:
            assert len(set(seq.block_ids)) == len(seq.block_ids)
            for index, block in enumerate(seq.block_ids):
                assert SCRATCH_BLOCK < block <= NUM_BLOCKS
                tokens = seq.token_ids[: (index + 1) * BLOCK_SIZE]
                assert content.setdefault(block, tokens) == tokens

    @invariant()
    def no_block_is_lost(self) -> None:
        owned = {block for seq in self.scheduler.running for block in seq.block_ids}
        assert self.scheduler.num_blocks_in_use == len(owned)

    def teardown(self) -> None:
        """Run all remaining sequences to their end, and check that every block is free again."""
        for _ in range(2000):
            if self.scheduler.is_idle:
                break
            self.step()
        assert self.scheduler.is_idle and not self.alive
        assert self.pool.num_available == NUM_BLOCKS


SchedulerStates.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None, derandomize=True)
test_any_order_of_events_keeps_the_schedulers_books = SchedulerStates.TestCase
