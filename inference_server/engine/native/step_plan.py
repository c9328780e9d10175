"""The work of one step, as the scheduler plans it. Works with token counts only."""

from dataclasses import dataclass

from inference_server.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class PrefillChunk:
    """Tokens `start` to `end` (exclusive) of one sequence.

    They are prompt tokens, and after a preemption also reply tokens.
    """

    seq: Sequence
    start: int
    end: int

    @property
    def is_last(self) -> bool:
        """True if the next token can be sampled after this chunk."""
        return self.end == self.seq.prefill_end


@dataclass(frozen=True, slots=True)
class StepPlan:
    """Work of one step."""

    admitted: list[Sequence]  # sequences that get a slot in this step
    prefill: list[PrefillChunk]
    decode: list[Sequence]  # in the order of admission

    @property
    def num_tokens(self) -> int:
        """Tokens that the step computes."""
        return len(self.decode) + sum(chunk.end - chunk.start for chunk in self.prefill)
