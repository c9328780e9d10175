"""Decides which sequences run next, and in which blocks. Knows token counts; knows nothing of text, tensors or gRPC.

A sequence waits, then runs until it is finished. A step decodes every running sequence whose prompt is computed, by one
token each, and computes a chunk of the prompts that are not. When blocks run out, the sequence admitted last goes back
to the head of the waiting room; its tokens stay, and are computed again when it is its turn. When the device's memory
runs out, fewer run for a while.
"""

from collections import Counter
from dataclasses import dataclass

from inference_server.engine.fair_queue import WaitingRoom
from inference_server.engine.native.block_pool import BlockPool
from inference_server.engine.prefix_keys import BlockKeys
from inference_server.engine.sequence import Sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Numbers of sequences and tokens that a step may hold."""

    max_running_seqs: int
    prefill_chunk_tokens: int  # a step's share of prompts while most sequences are decoded
    idle_chunk_tokens: int  # the same while none is: nobody waits for the end of this step
    batch_invariant: bool = False  # nothing that a sequence computes depends on who else is there
    scope_by_account: bool = False  # no account takes over what another one's prompts left
    max_account_seqs: int | None = None  # sequences of one account that run together


@dataclass(frozen=True, slots=True)
class PrefillChunk:
    """Tokens `start` to `end` (exclusive) of one sequence: of its prompt, or of what it lost when blocks ran out."""

    seq: Sequence
    start: int
    end: int

    @property
    def is_last(self) -> bool:
        return self.end == self.seq.prefill_end


@dataclass(frozen=True, slots=True)
class Step:
    admitted: list[Sequence]  # waiting until now
    prefill: list[PrefillChunk]
    decode: list[Sequence]  # in the order of admission

    @property
    def num_tokens(self) -> int:
        return len(self.decode) + sum(chunk.end - chunk.start for chunk in self.prefill)


# Steps without want of memory after which one more sequence may run again.
_STEPS_TO_RECOVER = 64


class Scheduler:
    """Accounts in turn (waiting.py). All methods are called from the engine's thread."""

    def __init__(self, pool: BlockPool, policy: Policy) -> None:
        self.waiting = WaitingRoom()
        self.running: list[Sequence] = []  # in the order of admission
        # All since the start. Prompts that come back after a preemption are not looked for in the prefix cache anew.
        self.num_preemptions = 0
        self.num_queried_tokens = 0
        self.num_hit_tokens = 0
        self.num_admitted = 0  # since the start; who comes back after a preemption does not count again
        self.max_running = policy.max_running_seqs  # at the moment
        self._calm_steps = 0
        self._pool = pool
        self._policy = policy

    @property
    def num_blocks(self) -> int:
        return self._pool.num_blocks

    @property
    def num_blocks_in_use(self) -> int:
        return self._pool.num_blocks - self._pool.num_available

    @property
    def is_idle(self) -> bool:
        return not self.waiting and not self.running

    def add(self, seq: Sequence) -> None:
        seq.block_keys = BlockKeys(self._pool.block_size, seq.request.account if self._policy.scope_by_account else "")
        seq.num_admitted_before = self.num_admitted
        self.waiting.add(seq)

    def remove(self, seq: Sequence) -> None:
        """Forget a finished or cancelled sequence and free its blocks. One that is already gone is ignored."""
        if seq in self.running:
            self.running.remove(seq)
            self._free(seq)
        else:
            self.waiting.remove(seq)

    def discard(self, seq: Sequence) -> None:
        """Like `remove`, for one whose computation failed: no prompt takes over what it left."""
        self._pool.forget(seq.block_ids)
        self.remove(seq)

    def schedule(self) -> Step:
        """Admit what fits and pick the work of the next step."""
        self._recover()
        self._make_room()
        admitted = self._admit()
        decode = [seq for seq in self.running if not seq.is_prefilling]
        return Step(admitted, self._prefill_chunks(len(decode)), decode)

    def shrink(self, seqs: list[Sequence]) -> bool:
        """Memory ran out with these: they wait again, and half as many run, with small chunks of prompts.

        False if there is nothing less to do than one sequence alone, in small chunks.
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
        """The keys and values of a sequence's first `num_computed` tokens are in the cache."""
        size = self._pool.block_size
        before, seq.num_computed = seq.num_computed, num_computed
        if num_computed // size > before // size and self._may_register(seq):
            keys = seq.block_keys.get(seq.token_ids, num_computed // size)
            for index in range(before // size, num_computed // size):
                self._pool.register(seq.block_ids[index], keys[index])

    def _may_register(self, seq: Sequence) -> bool:
        # Decoding rounds otherwise than prefilling: what it computed is not what a prompt would have computed.
        return not self._policy.batch_invariant or seq.num_computed <= seq.num_prompt_tokens

    def _make_room(self) -> None:
        """A block for the next token of every sequence that is decoded, at the cost of those admitted last."""
        for seq in list(self.running):
            if seq in self.running and not seq.is_prefilling:
                while not self._has_room(seq):
                    victim = self.running[-1]
                    self._preempt(victim)
                    if victim is seq:
                        break

    def _has_room(self, seq: Sequence) -> bool:
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
        self.waiting.put_back(seq)
        self.num_preemptions += 1

    def _free(self, seq: Sequence) -> None:
        self._pool.release(seq.block_ids)
        seq.block_ids = []
        seq.num_computed = 0

    def _admit(self) -> list[Sequence]:
        admitted: list[Sequence] = []
        by_account = Counter(seq.request.account for seq in self.running)
        most = self._policy.max_account_seqs
        while len(self.running) < self.max_running:
            seq = self.waiting.next(by_account, most)
            if seq is None or not self._place(seq):
                break
            self.waiting.take(seq)
            self.running.append(seq)
            by_account[seq.request.account] += 1
            if seq.admitted is None:
                self.num_admitted += 1
                self.num_queried_tokens += seq.num_prompt_tokens
                self.num_hit_tokens += seq.num_cached_tokens
                seq.admission_position = self.num_admitted - seq.num_admitted_before
            admitted.append(seq)
        return admitted

    def _place(self, seq: Sequence) -> bool:
        """Give a sequence the blocks of its tokens, the first of them from the prefix cache. False: not enough yet."""
        found = self._find_prefix(seq)
        self._pool.share(found)
        blocks = self._pool.allocate(self._pool.blocks_for(self._num_tokens_reserved(seq)) - len(found))
        # Those that run need a block each now and then: without a reserve, the newcomer would be sent back at once.
        if blocks is None or (self.running and self._pool.num_available < len(self.running)):
            self._pool.release(blocks or [])
            self._pool.release(found)
            return False
        seq.block_ids = found + blocks
        seq.num_computed = len(found) * self._pool.block_size
        if not seq.num_completion_tokens:
            seq.num_cached_tokens = seq.num_computed
        seq.prefill_end = len(seq.token_ids)
        return True

    def _num_tokens_reserved(self, seq: Sequence) -> int:
        if self._policy.batch_invariant:  # what is computed twice may be rounded otherwise: never send it back
            return seq.num_prompt_tokens + seq.request.max_tokens
        return len(seq.token_ids)

    def _find_prefix(self, seq: Sequence) -> list[int]:
        # The last token is always computed: its logits are wanted.
        size = self._pool.block_size
        found = self._pool.match(seq.block_keys.get(seq.token_ids, (len(seq.token_ids) - 1) // size))
        if self._policy.batch_invariant:
            # Further chunks must begin where they would have begun without the cache.
            chunk = max(size, self._policy.prefill_chunk_tokens // size * size)
            found = found[: len(found) * size // chunk * chunk // size]
        return found

    def _prefill_budget(self, num_decoding: int) -> int:
        """Prompt tokens of a step. They delay those that are decoded and bring on those that are not: the larger the part
        of the latter, the more of them. A multiple of the least, or what is left over costs as much as a whole one."""
        policy = self._policy
        least, most = policy.prefill_chunk_tokens, policy.idle_chunk_tokens
        if policy.batch_invariant or self.max_running < policy.max_running_seqs:
            return least
        part = 1 - num_decoding / max(1, len(self.running))
        return least + int((most - least) * part * part) // least * least

    def _prefill_chunks(self, num_decoding: int) -> list[PrefillChunk]:
        budget = self._prefill_budget(num_decoding)
        chunks = []
        for seq in self.running:
            if budget > 0 and seq.is_prefilling:
                end = min(seq.prefill_end, self._chunk_end(seq.num_computed, budget))
                budget -= end - seq.num_computed
                chunks.append(PrefillChunk(seq, seq.num_computed, end))
        return chunks

    def _chunk_end(self, start: int, budget: int) -> int:
        if not self._policy.batch_invariant:
            return start + budget
        size = self._pool.block_size
        chunk = max(size, self._policy.prefill_chunk_tokens // size * size)
        return (start // chunk + 1) * chunk
