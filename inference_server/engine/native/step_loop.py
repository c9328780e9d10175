"""Runs the steps of the native engine: schedule, forward pass, sample, append a token to every sequence.

Used on the engine's thread only. fault_recovery.py handles forward passes that fail.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Set
from dataclasses import replace

import torch

from inference_server.engine.histogram import STEP_TOKENS, Histogram
from inference_server.engine.native.fault_recovery import Emit, FaultRecovery
from inference_server.engine.native.penalties import PenaltyState
from inference_server.engine.native.sampler import NotFinite, Sample
from inference_server.engine.native.scheduling.scheduler import Scheduler
from inference_server.engine.native.scheduling.step_plan import PrefillChunk, StepPlan
from inference_server.engine.native.speculation.drafting import Drafting
from inference_server.engine.native.speculation.verification import verify
from inference_server.engine.native.step_rows import GrammarLimit, Logits, sample_tokens
from inference_server.engine.sequence import Sequence
from inference_server.generation import FinishReason, Started, TokenLogprob
from inference_server.model.runner import ModelRunner, NextToken, PromptPiece


class StepLoop:
    """Executor of step plans.

    Attributes:
        step_tokens: Tokens computed in each step, without empty steps.
        recovery: Handler of exceptions.
    """

    def __init__(
        self,
        runner: ModelRunner,
        scheduler: Scheduler,
        end_ids: Set[int],
        emit: Emit,
        sample: Callable[[Logits], list[Sample]] = sample_tokens,
        drafting: Drafting | None = None,
    ) -> None:
        """Create a loop without sequences.

        Args:
            runner: Computes the forward passes.
            scheduler: Selects the sequences of each step.
            end_ids: Tokens that end a reply.
            emit: Called with each sequence's events in order.
            sample: Chooses a token for each row of logits; tests replace it. It may change the logits.
            drafting: Chooses draft tokens; None: no draft tokens.
        """
        self._runner = runner
        self._scheduler = scheduler
        self._end_ids = end_ids
        self._emit = emit
        self._sample = sample
        self._drafting = drafting
        self.recovery = FaultRecovery(runner, scheduler, emit)
        self.step_tokens = Histogram(STEP_TOKENS)

    @property
    def is_broken(self) -> bool:
        """True if the model can no longer compute even a single token."""
        return self.recovery.is_broken

    def begin(self) -> StepPlan:
        """Finish the sequences whose time limit has passed, admit waiting sequences, and plan the next step."""
        now = time.monotonic()
        for seq in [*self._scheduler.waiting, *self._scheduler.running]:
            if seq.is_expired(now):
                self._finish(seq, FinishReason.TIME_LIMIT, seq.text.finish())
        plan = self._scheduler.schedule()
        if self._drafting is not None:
            plan = self._drafting.with_drafts(plan)
        if num_tokens := plan.num_tokens:
            self.step_tokens.add(num_tokens)
        for seq in plan.admitted:
            if seq.admitted is None:  # Started is sent only once, not again after a preemption
                seq.admitted = now
                self._emit(seq, Started(seq.num_prompt_tokens, seq.request.sampling.seed, seq.admission_position))
        return plan

    def passes(self, plan: StepPlan) -> Iterator[None]:
        """Decode the planned sequences, and compute the planned chunks of prompts.

        Yields after each forward pass, so that its tokens can be published before the next pass.
        """
        if plan.decode and plan.prefill and self._runner.supports_mixed_batch and self._run_mixed_pass(plan):
            yield
            return
        if plan.decode:
            self._run_decode(plan)
            yield
        if plan.prefill:
            self._run_pass(_seqs_of(plan.prefill), lambda: self._prefill(plan))
            yield

    @torch.inference_mode()
    def _run_mixed_pass(self, plan: StepPlan) -> bool:
        """Run one pass for decoded tokens and prompts. Returns False if it failed and separate passes must follow."""
        what = "decoded tokens and prompts"
        rows = self.recovery.attempt(lambda: self._runner.mixed(_next_tokens(plan), self._pieces(plan)), what)
        if rows is None:
            return False
        logits = Logits(rows, self._decoded(plan) + self._prefilled(plan))
        self._run_pass([*plan.decode, *_seqs_of(plan.prefill)], lambda: logits)
        return True

    def _run_decode(self, plan: StepPlan) -> None:
        """Decode a token of each sequence, with its draft tokens if it has any, and record the duration for drafting.

        On a CPU, the duration is the CPU time of the thread, which excludes delays by other processes.
        """
        clock = time.perf_counter if self._runner.supports_overlap else time.thread_time
        started = clock()
        if plan.drafts:
            self._run_drafts(plan)
        else:
            self._run_pass(plan.decode, lambda: self._decode(plan))
        if self._drafting is not None and not plan.prefill:
            self._drafting.costs.add(plan.num_tokens, clock() - started)

    @torch.inference_mode()
    def _run_drafts(self, plan: StepPlan) -> None:
        """Decode and check the draft tokens.

        An exception affects only the sequences of this pass, as in `_run_pass`.
        """
        assert self._drafting is not None
        rows = self.recovery.attempt(lambda: self._runner.decode(_next_tokens(plan)), "draft tokens")
        if rows is None:
            plain = replace(plan, drafts={})
            self._run_pass(plan.decode, lambda: self._decode(plain))
            return
        try:
            self._decoded(plan)
            sample = self._sample if self._sample is sample_tokens else None
            verify(plan, rows, appender=self, scheduler=self._scheduler, drafting=self._drafting, sample=sample)
        except Exception as error:
            self.recovery.pass_failed(plan.decode, error)

    @torch.inference_mode()
    def _run_pass(self, seqs: list[Sequence], forward: Callable[[], Logits]) -> None:
        """Run a forward pass, sample, and append the tokens. An exception affects only the sequences of this pass."""
        try:
            self.sample(forward())
        except Exception as error:
            self.recovery.pass_failed(seqs, error)

    def sample(self, logits: Logits) -> None:
        """Sample a token for each row and append it to its sequence."""
        sampled = self.sampled(logits)
        now = time.monotonic()
        for seq, chosen in sampled:
            self.append_sample(seq, chosen, now)

    def sampled(self, logits: Logits) -> Iterable[tuple[Sequence, Sample]]:
        """Return each sequence with its sampled token. Sequences whose row cannot be sampled fail and are left out."""
        while logits.seqs:
            try:
                return zip(logits.seqs, self._sample(logits), strict=True)
            except (NotFinite, GrammarLimit) as error:
                self.recovery.sampling_failed([logits.seqs[row] for row in error.rows])
                logits = logits.without(error.rows)
        return ()

    def append_sample(self, seq: Sequence, sample: Sample, now: float) -> None:
        """Append a sampled token, and count it for the sequence's penalties."""
        if seq.penalties is not None:
            seq.penalties.add(sample.token_id)
        self.append(seq, sample.token_id, sample.logprob, now)

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
        """Return a new penalty state that counts the sequence's tokens so far."""
        reply_ids = seq.token_ids[seq.num_prompt_tokens :]
        return PenaltyState(seq.request.prompt_ids, self._runner.vocab_size, self._runner.device, reply_ids)

    def _decoded(self, plan: StepPlan) -> list[Sequence]:
        """Record that the newest token of each sequence is computed.

        Returns the sequences in the order of their rows.
        """
        for seq in plan.decode:
            self._scheduler.computed(seq, seq.num_computed + 1)
        return plan.decode

    def _prefilled(self, plan: StepPlan) -> list[Sequence]:
        """Record that the chunks are computed.

        Returns the sequences with a complete prompt, one for each row of logits.
        """
        for chunk in plan.prefill:
            self._scheduler.computed(chunk.seq, chunk.end)
        return [chunk.seq for chunk in plan.prefill if chunk.is_last]


def _next_tokens(plan: StepPlan) -> list[NextToken]:
    """Return the tokens of a decode pass: each sequence's newest token, and after it its draft tokens."""
    newest = [NextToken(seq.block_ids, seq.num_computed, seq.token_ids[-1], seq.request.adapter) for seq in plan.decode]
    if not plan.drafts:
        return newest
    tokens = []
    for seq, token in zip(plan.decode, newest, strict=True):
        tokens.append(token)
        for position, draft in enumerate(plan.drafts.get(seq, ()), token.position + 1):
            tokens.append(replace(token, position=position, token_id=draft))
    return tokens


def _seqs_of(chunks: list[PrefillChunk]) -> list[Sequence]:
    return [chunk.seq for chunk in chunks]
