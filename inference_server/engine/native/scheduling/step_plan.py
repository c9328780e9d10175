"""Defines the work of one step, and divides its prompt tokens among sequences. Works with token counts only."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from inference_server.engine.sequence import Sequence

# A step that prefills batch requests computes about `prefill_chunk_tokens // _BATCH_PART` tokens.
_BATCH_PART = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Limits and modes of the scheduler.

    Attributes:
        max_running_seqs: Sequences that may run at the same time.
        prefill_chunk_tokens: Prompt tokens per step while most running sequences decode.
        idle_chunk_tokens: Prompt tokens per step while no sequence decodes. May be larger than prefill_chunk_tokens,
            because no decoding sequence is delayed.
        batch_invariant: True if the results of a sequence do not depend on the other requests in the batch.
        scope_by_account: True if an account cannot reuse the prefix cache of another account.
        max_account_seqs: Sequences of one account and one priority that may run at the same time; None: any number.
        max_batch_seqs: Sequences of batch requests that may run at the same time; None: any number.
    """

    max_running_seqs: int
    prefill_chunk_tokens: int
    idle_chunk_tokens: int
    batch_invariant: bool = False
    scope_by_account: bool = False
    max_account_seqs: int | None = None
    max_batch_seqs: int | None = None

    def chunk_size(self, block_size: int) -> int:
        """Return the distance in tokens between the positions at which batch-invariant chunks begin."""
        return max(block_size, self.prefill_chunk_tokens // block_size * block_size)


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
    drafts: Mapping[Sequence, list[int]] = field(default_factory=dict)  # draft tokens of decoded sequences

    @property
    def num_tokens(self) -> int:
        """Tokens that the step computes."""
        num_drafted = sum(map(len, self.drafts.values()))
        return len(self.decode) + num_drafted + sum(chunk.end - chunk.start for chunk in self.prefill)


def prefill_budget(policy: Policy, num_prefilling: int, num_decoding: int, *, is_smallest: bool) -> int:
    """Return the number of prompt tokens of a step. It grows with the share of sequences that are prefilling.

    Prompt tokens delay the sequences that decode. The result is a multiple of the smallest chunk, because a partial
    chunk takes as long as a whole one.

    Args:
        policy: Limits of the scheduler.
        num_prefilling: Sequences of this step whose prompts are not complete.
        num_decoding: Sequences of this step that decode.
        is_smallest: Return the smallest chunk, because memory ran out before.
    """
    least, most = policy.prefill_chunk_tokens, policy.idle_chunk_tokens
    if policy.batch_invariant or is_smallest:
        return least
    share = num_prefilling / max(1, num_prefilling + num_decoding)
    return least + int((most - least) * share * share) // least * least


def batch_budget(policy: Policy, num_decoding: int) -> int:
    """Return the number of prompt tokens of a step that computes prompts of batch requests only.

    The number is small, because an interactive request that arrives during the step waits for the end of the step.

    Args:
        policy: Limits of the scheduler.
        num_decoding: Sequences of batch requests that decode in this step.
    """
    most = max(1, policy.prefill_chunk_tokens // _BATCH_PART)
    return max(most - num_decoding, most // 2, 1)


def prefill_chunks(policy: Policy, block_size: int, seqs: Iterable[Sequence], budget: int) -> list[PrefillChunk]:
    """Divide a step's prompt tokens among sequences, in the given order.

    Args:
        policy: Limits of the scheduler.
        block_size: Tokens of a block.
        seqs: Sequences whose prompts are not complete.
        budget: Number of prompt tokens of the step. A batch-invariant chunk may exceed this number.
    """
    chunks = []
    for seq in seqs:
        if budget <= 0:
            break
        end = seq.num_computed + budget
        if policy.batch_invariant:
            size = policy.chunk_size(block_size)
            end = (seq.num_computed // size + 1) * size
        end = min(seq.prefill_end, end)
        budget -= end - seq.num_computed
        chunks.append(PrefillChunk(seq, seq.num_computed, end))
    return chunks
