"""Decides which sequences run next. Knows token counts and slots; knows nothing of text, tensors or gRPC.

A sequence waits, then runs in a slot of the KV cache until it is finished. A step decodes every running sequence whose
prompt is computed, by one token each, and computes at most `prefill_chunk_tokens` of the prompts that are not.
"""

import heapq
from collections import deque
from dataclasses import dataclass

from inference_server.sequence import Sequence


@dataclass(frozen=True, slots=True)
class PrefillChunk:
    """Prompt tokens `start` to `end` (exclusive) of one sequence."""

    seq: Sequence
    start: int
    end: int

    @property
    def completes_prompt(self) -> bool:
        return self.end == self.seq.num_prompt_tokens


@dataclass(frozen=True, slots=True)
class Step:
    admitted: list[Sequence]  # waiting until now
    prefill: list[PrefillChunk]
    decode: list[Sequence]  # ordered by slot


class Scheduler:
    """First come, first served. All methods are called from the engine's thread."""

    def __init__(self, *, num_slots: int, prefill_chunk_tokens: int) -> None:
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []  # in the order of admission
        self._prefill_chunk_tokens = prefill_chunk_tokens
        # The lowest free slot is taken first: the running sequences stay close together in the cache.
        self._free_slots = list(range(num_slots))

    @property
    def is_idle(self) -> bool:
        return not self.waiting and not self.running

    def add(self, seq: Sequence) -> None:
        self.waiting.append(seq)

    def remove(self, seq: Sequence) -> None:
        """Forget a finished or cancelled sequence and free its slot. One that is already gone is ignored."""
        if seq.slot is None:
            if seq in self.waiting:
                self.waiting.remove(seq)
            return
        self.running.remove(seq)
        heapq.heappush(self._free_slots, seq.slot)
        seq.slot = None

    def schedule(self) -> Step:
        """Admit what fits and pick the work of the next step."""
        admitted = self._admit()
        decode = sorted(
            (seq for seq in self.running if not seq.is_prefilling),
            key=lambda seq: seq.slot or 0,
        )
        return Step(admitted, self._prefill_chunks(), decode)

    def _admit(self) -> list[Sequence]:
        admitted = []
        while self.waiting and self._free_slots:
            seq = self.waiting.popleft()
            seq.slot = heapq.heappop(self._free_slots)
            self.running.append(seq)
            admitted.append(seq)
        return admitted

    def _prefill_chunks(self) -> list[PrefillChunk]:
        budget = self._prefill_chunk_tokens
        chunks = []
        for seq in self.running:
            if budget and seq.is_prefilling:
                start = seq.num_computed
                end = min(seq.num_prompt_tokens, start + budget)
                budget -= end - start
                chunks.append(PrefillChunk(seq, start, end))
        return chunks
