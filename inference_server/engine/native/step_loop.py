"""Runs the steps of the native engine: schedule, forward pass, sample, append a token to every sequence.

Used on the engine's thread only. fault_recovery.py handles forward passes that fail.
"""

import time
from collections.abc import Callable, Collection, Iterator, Set
from dataclasses import dataclass

import torch
from torch import Tensor

from inference_server.engine.histogram import STEP_TOKENS, Histogram
from inference_server.engine.native.fault_recovery import Emit, FaultRecovery
from inference_server.engine.native.penalties import PenaltyState
from inference_server.engine.native.sampler import NotFinite, Row, Sample, sample
from inference_server.engine.native.scheduling.scheduler import Scheduler
from inference_server.engine.native.scheduling.step_plan import PrefillChunk, StepPlan
from inference_server.engine.sequence import Sequence
from inference_server.generation import FinishReason, Started, TokenLogprob
from inference_server.model.runner import ModelRunner, NextToken, PromptPiece
from inference_server.text.grammar import GrammarError


@dataclass(frozen=True, slots=True)
class Logits:
    """Logits of the sequences that get a token in this step. `rows`: float32, shape (len(seqs), vocab_size)."""

    rows: Tensor
    seqs: list[Sequence]

    def without(self, bad: Collection[int]) -> "Logits":
        """Return a copy without some rows and their sequences."""
        kept = [row for row in range(len(self.seqs)) if row not in bad]
        return Logits(self.rows[kept], [self.seqs[row] for row in kept])


class GrammarLimit(Exception):
    """The grammar of a sequence exceeds its limits. `rows`: index of its row."""

    def __init__(self, row: int, reason: str) -> None:
        super().__init__(reason)
        self.rows = [row]


def sample_tokens(logits: Logits) -> list[Sample]:
    """Choose a token for each sequence.

    Raises:
        NotFinite: Rows of logits cannot be sampled. The logits are unchanged.
        GrammarLimit: A grammar exceeds its limits. The logits are unchanged.
    """
    return sample(logits.rows, [_row(index, seq) for index, seq in enumerate(logits.seqs)])


class StepLoop:
    """Executor of step plans.

    Attributes:
        step_tokens: Tokens computed in each step, without empty steps.
        recovery: Handler of failures.
    """

    def __init__(
        self,
        runner: ModelRunner,
        scheduler: Scheduler,
        end_ids: Set[int],
        emit: Emit,
        sample: Callable[[Logits], list[Sample]] = sample_tokens,
    ) -> None:
        """Create a loop without sequences.

        Args:
            runner: The model.
            scheduler: The sequences.
            end_ids: Tokens that end a reply.
            emit: Called with every event, in order.
            sample: Chooses a token for each row of logits; tests replace it. It may change the logits.
        """
        self._runner = runner
        self._scheduler = scheduler
        self._end_ids = end_ids
        self._emit = emit
        self._sample = sample
        self.recovery = FaultRecovery(runner, scheduler, emit)
        self.step_tokens = Histogram(STEP_TOKENS)

    @property
    def is_broken(self) -> bool:
        """True if the model can no longer compute even a single token."""
        return self.recovery.is_broken

    def begin(self) -> StepPlan:
        """Finish the sequences whose time limit has passed, admit others, and plan the next step."""
        now = time.monotonic()
        for seq in [*self._scheduler.waiting, *self._scheduler.running]:
            if seq.is_expired(now):
                self._finish(seq, FinishReason.TIME_LIMIT, seq.text.finish())
        plan = self._scheduler.schedule()
        if num_tokens := plan.num_tokens:
            self.step_tokens.add(num_tokens)
        for seq in plan.admitted:
            if seq.admitted is None:  # Started is sent only once, not after a preemption
                seq.admitted = now
                self._emit(seq, Started(seq.num_prompt_tokens, seq.request.sampling.seed, seq.admission_position))
        return plan

    def passes(self, plan: StepPlan) -> Iterator[None]:
        """Decode one token of every sequence with a complete prompt, and compute the planned chunks of prompts.

        Yields after each forward pass, so that its tokens need not wait for the next pass.
        """
        if plan.decode and plan.prefill and self._runner.supports_mixed_batch and self._run_mixed_pass(plan):
            yield
            return
        if plan.decode:
            self._run_pass(plan.decode, lambda: self._decode(plan))
            yield
        if plan.prefill:
            self._run_pass(_seqs_of(plan.prefill), lambda: self._prefill(plan))
            yield

    @torch.inference_mode()
    def _run_mixed_pass(self, plan: StepPlan) -> bool:
        """Run one pass for decoded tokens and prompts. Returns False if it failed and separate passes must follow."""
        rows = self.recovery.attempt(lambda: self._runner.mixed(_next_tokens(plan), self._pieces(plan)))
        if rows is None:
            return False
        logits = Logits(rows, self._decoded(plan) + self._prefilled(plan))
        self._run_pass([*plan.decode, *_seqs_of(plan.prefill)], lambda: logits)
        return True

    @torch.inference_mode()
    def _run_pass(self, seqs: list[Sequence], forward: Callable[[], Logits]) -> None:
        """Run a forward pass, sample, and append the tokens. An exception affects only the sequences of this pass."""
        try:
            self.sample(forward())
        except Exception as error:
            self.recovery.pass_failed(seqs, error)

    def sample(self, logits: Logits) -> None:
        """Sample a token for each row and append it to its sequence."""
        sampled, samples = self._sample_rows(logits)
        now = time.monotonic()
        for seq, chosen in zip(sampled, samples, strict=True):
            if seq.penalties is not None:
                seq.penalties.add(chosen.token_id)
            self.append(seq, chosen.token_id, chosen.logprob, now)

    def _sample_rows(self, logits: Logits) -> tuple[list[Sequence], list[Sample]]:
        """Sample a token for each row. Sequences whose row cannot be sampled fail and are left out."""
        while logits.seqs:
            try:
                return logits.seqs, self._sample(logits)
            except (NotFinite, GrammarLimit) as error:
                self.recovery.sampling_failed([logits.seqs[row] for row in error.rows])
                logits = logits.without(error.rows)
        return [], []

    def append(self, seq: Sequence, token_id: int, logprob: TokenLogprob | None, now: float) -> None:
        """Append a token that was sampled at `now`, emit its text, and finish the sequence if its reply ends here."""
        text, reason = seq.append(token_id, logprob, self._end_ids, now)
        if reason is not None:
            self._finish(seq, reason, text)
        elif text:
            self._emit(seq, seq.take_delta(text))

    def _finish(self, seq: Sequence, reason: FinishReason, text: str) -> None:
        events = seq.last_events(reason, text, time.monotonic())
        self._scheduler.remove(seq)
        for event in events:
            self._emit(seq, event)

    def _decode(self, plan: StepPlan) -> Logits:
        logits = self._runner.decode(_next_tokens(plan))
        return Logits(logits, self._decoded(plan))

    def _prefill(self, plan: StepPlan) -> Logits:
        logits = self._runner.prefill(self._pieces(plan))
        return Logits(logits, self._prefilled(plan))

    def _pieces(self, plan: StepPlan) -> list[PromptPiece]:
        pieces = []
        for chunk in plan.prefill:
            seq = chunk.seq
            if seq.penalties is None and seq.request.sampling.has_penalties:
                seq.penalties = self.penalties_of(seq)
            token_ids = seq.token_ids[chunk.start : chunk.end]
            pieces.append(PromptPiece(seq.block_ids, chunk.start, token_ids, chunk.is_last, seq.request.adapter))
        return pieces

    def penalties_of(self, seq: Sequence) -> PenaltyState:
        """Return the penalties' state after the sequence's tokens so far."""
        reply_ids = seq.token_ids[seq.num_prompt_tokens :]
        return PenaltyState(seq.request.prompt_ids, self._runner.vocab_size, self._runner.device, reply_ids)

    def _decoded(self, plan: StepPlan) -> list[Sequence]:
        """Record the computed tokens. Returns the decoded sequences, one for each row of logits."""
        for seq in plan.decode:
            self._scheduler.computed(seq, seq.num_computed + 1)
        return plan.decode

    def _prefilled(self, plan: StepPlan) -> list[Sequence]:
        """Record the computed tokens. Returns the sequences whose prompt is complete, one for each row of logits."""
        for chunk in plan.prefill:
            self._scheduler.computed(chunk.seq, chunk.end)
        return [chunk.seq for chunk in plan.prefill if chunk.is_last]


def _row(index: int, seq: Sequence) -> Row:
    constraint = seq.request.constraint
    try:
        allowed = None if constraint is None else torch.from_numpy(constraint.allowed())
    except GrammarError as error:
        raise GrammarLimit(index, str(error)) from error
    return Row(seq.request.sampling, len(seq.token_ids), seq.penalties, allowed)


def _next_tokens(plan: StepPlan) -> list[NextToken]:
    return [NextToken(seq.block_ids, seq.num_computed, seq.token_ids[-1], seq.request.adapter) for seq in plan.decode]


def _seqs_of(chunks: list[PrefillChunk]) -> list[Sequence]:
    return [chunk.seq for chunk in chunks]
