"""Plans each step: which sequences run, in which blocks, and how many prompt tokens are prefilled.

A sequence waits, then runs until it is finished. A step decodes one token of every running sequence with a complete prompt,
and prefills a chunk of the other prompts. When blocks run out, the sequence admitted last is preempted. It goes to the
head of the wait queue, keeps its tokens, and is computed again later. When the device's memory runs out, fewer sequences run
at the same time for a while.

Batch requests use the capacity that interactive requests leave. A limited number of them run at the same time, and
their prompts are computed in small chunks. They pause while an interactive prompt is computed. They are the first to be
preempted, even if an interactive request lacks only a slot.

The common beginning of several prompts is computed once, even if they arrive together (prompt_sharing.py). This module
works with token counts only and does not depend on text, tensors or gRPC.
"""

from inference_server.engine.native.scheduling.block_pool import BlockPool
from inference_server.engine.native.scheduling.prompt_sharing import PromptSharing
from inference_server.engine.native.scheduling.step_plan import (
    Policy,
    PrefillChunk,
    StepPlan,
    batch_budget,
    prefill_budget,
    prefill_chunks,
)
from inference_server.engine.prefix_keys import BlockKeys
from inference_server.engine.sequence import Sequence
from inference_server.engine.wait_queue import RunningCounts, WaitQueue

# After memory ran out, one more sequence may run each time this many steps had enough memory.
_STEPS_TO_RECOVER = 64


class Scheduler:
    """Scheduler of one model's sequences. All methods are called on the engine's thread.

    Attributes:
        waiting: Wait queue.
        running: Sequences with a slot, in the order of admission.
        num_preemptions: Preemptions since the start.
        num_queried_tokens: Prompt tokens looked up in the prefix cache since the start. Preempted sequences count once.
        num_hit_tokens: Prompt tokens found in the prefix cache.
        num_admitted: Sequences admitted since the start. Preempted ones count once.
        max_running: Sequences that may run at the same time; temporarily lower after memory ran out.
        num_changes: Sequences added, admitted, preempted or removed since the start.
    """

    def __init__(self, pool: BlockPool, policy: Policy) -> None:
        """Create a scheduler without sequences. The scheduler must be the only user of `pool`."""
        self.waiting = WaitQueue(max_account_seqs=policy.max_account_seqs, max_batch_seqs=policy.max_batch_seqs)
        self.running: list[Sequence] = []
        self.num_preemptions = 0
        self.num_queried_tokens = 0
        self.num_hit_tokens = 0
        self.num_admitted = 0
        self.max_running = policy.max_running_seqs
        self.num_changes = 0
        self._calm_steps = 0
        self._pool = pool
        self._sharing = PromptSharing(pool, policy)
        self._policy = policy

    @property
    def num_blocks(self) -> int:
        """Blocks of the KV cache that sequences can get."""
        return self._pool.num_blocks

    @property
    def block_size(self) -> int:
        """Tokens of a block."""
        return self._pool.block_size

    @property
    def num_blocks_in_use(self) -> int:
        """Blocks of the KV cache that sequences hold."""
        return self._pool.num_blocks - self._pool.num_available

    @property
    def preempts_batch(self) -> bool:
        """True if interactive requests can take the slots and blocks of batch requests."""
        return not self._policy.batch_invariant  # a preempted sequence is computed again, which may round differently

    @property
    def is_idle(self) -> bool:
        """True if no sequence waits or runs."""
        return not self.waiting and not self.running

    def add(self, seq: Sequence) -> None:
        """Put a new sequence into the wait queue."""
        account = seq.request.account if self._policy.scope_by_account else ""
        seq.block_keys = BlockKeys(self._pool.block_size, account, seq.request.adapter)
        seq.num_admitted_before = self.num_admitted
        self.waiting.add(seq)
        self.num_changes += 1

    def remove(self, seq: Sequence) -> None:
        """Remove a finished or cancelled sequence and release its blocks. Has no effect if it was removed before."""
        self.num_changes += 1
        if seq in self.running:
            self.running.remove(seq)
            self._free(seq)
        else:
            self.waiting.remove(seq)

    def discard(self, seq: Sequence) -> None:
        """Remove a sequence whose computation failed, and unregister its blocks, so that no prompt reuses them."""
        self._pool.forget(seq.block_ids)
        self.remove(seq)

    def schedule(self) -> StepPlan:
        """Admit waiting sequences as far as blocks and slots allow, and return the work of the next step."""
        self._recover()
        self._allocate_next_blocks()
        admitted = self._admit()
        prefilling: list[Sequence] = []
        decoding: list[Sequence] = []
        for seq in self.running:
            (prefilling if seq.is_prefilling else decoding).append(seq)
        if interactive := [seq for seq in prefilling if not seq.request.is_batch]:
            prefilling = interactive
            decoding = [seq for seq in decoding if not seq.request.is_batch]
        return StepPlan(admitted, self._prefill_chunks(prefilling, decoding), decoding)

    def may_continue(self) -> bool:
        """Return True if the running batch can continue unchanged, because no waiting sequence can be admitted.

        Like `schedule`, each call counts as one step of the recovery of `max_running`.
        """
        self._recover()
        if not self.waiting or self._is_full():
            return True
        seq = self.waiting.peek(RunningCounts(self.running))
        if seq is None:
            return True
        if len(self.running) < self.max_running and self._allocate(seq):
            self._free(seq)
            return False
        return self._victim_for(seq) is None

    def extend(self, seqs: list[Sequence]) -> bool:
        """Give one more block to each running sequence in `seqs`. Returns False, without a change, if too few are free."""
        blocks = self._pool.allocate(len(seqs))
        if blocks is None:
            return False
        for seq, block in zip(seqs, blocks, strict=True):
            seq.block_ids.append(block)
        return True

    def reserve(self, seq: Sequence, num_drafts: int) -> int:
        """Reserve blocks for draft tokens after the newest token of a decoding sequence, without preempting a sequence.

        Returns the number of draft tokens that fit, 0 to `num_drafts`. A block stays free for each running sequence.
        """
        size = self._pool.block_size
        lacking = self._pool.blocks_for(seq.num_computed + 1 + num_drafts) - len(seq.block_ids)
        if lacking > 0:
            spare = min(lacking, self._pool.num_available - len(self.running))
            seq.block_ids += self._pool.allocate(spare) or [] if spare > 0 else []
        return min(num_drafts, len(seq.block_ids) * size - seq.num_computed - 1)

    def shrink(self, seqs: list[Sequence]) -> bool:
        """Preempt `seqs` after memory ran out, and set the limit on running sequences to half of their number.

        The limit is at least 1. Other running sequences continue. Until the limit has recovered, prompt chunks have the
        smallest size.

        Returns False, without a change, if the limit is already one running sequence.
        """
        if len(self.running) <= 1 and self.max_running == 1:
            return False
        self.max_running = max(1, len(self.running) // 2)
        self._calm_steps = 0
        for seq in reversed(self.running.copy()):
            if seq in seqs:
                self._preempt(seq)
        return True

    def _recover(self) -> None:
        if self.max_running < self._policy.max_running_seqs:
            self._calm_steps += 1
            if self._calm_steps % _STEPS_TO_RECOVER == 0:
                self.max_running += 1

    def computed(self, seq: Sequence, num_computed: int) -> None:
        """Record that the keys and values of a sequence's first `num_computed` tokens are in the cache."""
        size = self._pool.block_size
        before, seq.num_computed = seq.num_computed, num_computed
        if num_computed // size > before // size and self._may_register(seq):
            keys = seq.block_keys.get(seq.token_ids, num_computed // size)
            for index in range(before // size, num_computed // size):
                self._pool.register(seq.block_ids[index], keys[index])
        if before < seq.prefill_end <= num_computed:
            self._sharing.end(seq)

    def decoded(self, seqs: list[Sequence]) -> None:
        """Record that the keys and values of one more token of each sequence are in the cache."""
        size = self._pool.block_size
        for seq in seqs:
            if (seq.num_computed + 1) % size:
                seq.num_computed += 1
            else:
                self.computed(seq, seq.num_computed + 1)

    def _may_register(self, seq: Sequence) -> bool:
        # Decoding and prefilling round differently, so decoded blocks differ from blocks that a prompt would compute.
        return not self._policy.batch_invariant or seq.num_computed <= seq.num_prompt_tokens

    def _allocate_next_blocks(self) -> None:
        """Give every decoding sequence a block for its next token. Preempts sequences if blocks run out."""
        for seq in list(self.running):
            if seq in self.running and not seq.is_prefilling:
                while not self._has_next_block(seq):
                    victim = self._last_batch_seq() or self.running[-1]
                    self._preempt(victim)
                    if victim is seq:
                        break

    def _has_next_block(self, seq: Sequence) -> bool:
        """Allocate a block for the next token if there is none. Returns False if no block is available."""
        if seq.num_computed < len(seq.block_ids) * self._pool.block_size:
            return True
        blocks = self._pool.allocate(1)
        if blocks is None:
            return False
        seq.block_ids += blocks
        return True

    def _preempt(self, seq: Sequence) -> None:
        self.running.remove(seq)
        self._free(seq)
        self.waiting.requeue(seq)
        self.num_preemptions += 1
        self.num_changes += 1

    def _free(self, seq: Sequence) -> None:
        self._sharing.end(seq)
        self._pool.release(seq.block_ids)
        seq.block_ids = []
        seq.num_computed = 0

    def _admit(self) -> list[Sequence]:
        admitted: list[Sequence] = []
        if not self.waiting or self._is_full():
            return admitted
        counts = RunningCounts(self.running)
        while (seq := self.waiting.peek(counts)) is not None:
            if len(self.running) >= self.max_running or not self._allocate(seq):
                if (victim := self._victim_for(seq)) is None:
                    break
                self._preempt(victim)
                counts.change(victim, -1)
                continue
            self.waiting.pop(seq)
            self.running.append(seq)
            self.num_changes += 1
            counts.change(seq, 1)
            if seq.admitted is None:
                self.num_admitted += 1
                self.num_queried_tokens += seq.num_prompt_tokens
                self.num_hit_tokens += seq.num_cached_tokens
                seq.admission_position = self.num_admitted - seq.num_admitted_before
            admitted.append(seq)
        return admitted

    def _is_full(self) -> bool:
        """Return True if no waiting sequence can get a slot, whatever its priority."""
        return len(self.running) >= self.max_running and self._last_batch_seq() is None

    def _victim_for(self, seq: Sequence) -> Sequence | None:
        """Return a sequence to preempt for a waiting one; None if preempting batch requests would not let it start."""
        if seq.request.is_batch or not self.preempts_batch:
            return None
        batch = [other for other in self.running if other.request.is_batch]
        if not batch:
            return None
        found = self._sharing.cached(seq)
        num_blocks = self._pool.blocks_for(len(seq.token_ids)) - len(found) + len(self.running) - len(batch)
        held = [block for other in batch for block in other.block_ids]
        return batch[-1] if num_blocks <= self._pool.num_available_after(held, found) else None

    def _last_batch_seq(self) -> Sequence | None:
        return next((seq for seq in reversed(self.running) if seq.request.is_batch), None)

    def _allocate(self, seq: Sequence) -> bool:
        """Give a sequence the blocks of its tokens, the first ones from the prefix cache. Returns False if too few are free."""
        found = self._sharing.cached(seq)
        self._pool.share(found)
        blocks = self._pool.allocate(self._pool.blocks_for(self._num_tokens_reserved(seq)) - len(found))
        # Running sequences need further blocks. Unless one is reserved for each, this sequence would soon be preempted.
        if blocks is None or (self.running and self._pool.num_available < len(self.running)):
            self._pool.release(blocks or [])
            self._pool.release(found)
            return False
        seq.block_ids = found + blocks
        seq.num_computed = len(found) * self._pool.block_size
        if not seq.num_completion_tokens:
            seq.num_cached_tokens = seq.num_computed
        seq.prefill_end = len(seq.token_ids)
        self._sharing.start(seq)
        return True

    def _num_tokens_reserved(self, seq: Sequence) -> int:
        if self._policy.batch_invariant:  # a second computation may round differently, so preemption must not happen
            return seq.num_prompt_tokens + seq.request.max_tokens
        return len(seq.token_ids)

    def _prefill_chunks(self, prefilling: list[Sequence], decoding: list[Sequence]) -> list[PrefillChunk]:
        if not prefilling:
            return []
        if prefilling[0].request.is_batch:
            budget = batch_budget(self._policy, sum(seq.request.is_batch for seq in decoding))
        else:
            is_smallest = self.max_running < self._policy.max_running_seqs
            budget = prefill_budget(self._policy, len(prefilling), len(decoding), is_smallest=is_smallest)
        ready = (seq for seq in prefilling if self._is_ready(seq))
        return prefill_chunks(self._policy, self._pool.block_size, ready, budget)

    def _is_ready(self, seq: Sequence) -> bool:
        """Take the blocks that other prompts have filled. Returns False if the sequence must wait for its next block."""
        if num_tokens := self._sharing.take(seq):
            if not seq.num_completion_tokens:
                seq.num_cached_tokens += num_tokens
                self.num_hit_tokens += num_tokens
        return self._sharing.may_go_on(seq)
