"""One step of the engine: schedule, run the model, sample, advance every sequence. On the engine's thread only.

Knows sequences and events; what a step costs is decided here and in the model below, nowhere else.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Set
from dataclasses import dataclass

import torch
from torch import Tensor

from inference_server.engine.histogram import STEP_TOKENS, Tally
from inference_server.engine.native.sampler import NotFinite, PenaltyState, Row, Sample, sample
from inference_server.engine.native.scheduler import PrefillChunk, Scheduler, Step
from inference_server.engine.sequence import Event, Failed, FinishReason, Sequence, Started
from inference_server.errors import GenerationFailed
from inference_server.model.runner import ModelRunner, NextToken, PromptPiece
from inference_server.text.grammar import GrammarError

logger = logging.getLogger(__name__)

Emit = Callable[[Sequence, Event], None]


@dataclass(frozen=True, slots=True)
class _Logits:
    """Logits of the sequences that get a token in this step, row by row."""

    rows: Tensor  # (num_seqs, vocab_size) float32
    seqs: list[Sequence]


class Stepper:
    def __init__(self, runner: ModelRunner, scheduler: Scheduler, end_ids: Set[int], emit: Emit) -> None:
        """`end_ids`: tokens that end a reply. `emit` is told every event, in order."""
        self._runner = runner
        self._scheduler = scheduler
        self._end_ids = end_ids
        self._emit = emit
        self.step_tokens = Tally(STEP_TOKENS)  # of each step that had any
        self.is_broken = False  # not even one token by itself can be computed any more

    def begin(self) -> Step:
        """Finish what has run out of time, admit what fits, and pick the work of the next step."""
        now = time.monotonic()
        for seq in [*self._scheduler.waiting, *self._scheduler.running]:
            if seq.is_expired(now):
                self._finish(seq, FinishReason.TIME_LIMIT, seq.text.finish())
        step = self._scheduler.schedule()
        if num_tokens := step.num_tokens:
            self.step_tokens.add(num_tokens)
        for seq in step.admitted:
            if seq.admitted is None:  # else it is back after blocks had run out
                seq.admitted = now
                self._emit(seq, Started(seq.num_prompt_tokens, seq.request.sampling.seed, seq.turn))
        return step

    def passes(self, step: Step) -> Iterator[None]:
        """One more token for every sequence whose prompt is computed, and the next chunks of prompts.

        Yields after each forward pass: its tokens do not wait for the next one.
        """
        if step.decode and step.prefill and self._runner.supports_mixed_batch and (logits := self._both(step)) is not None:
            self._guarded([*step.decode, *_seqs_of(step.prefill)], lambda: logits)
            yield
            return
        if step.decode:
            self._guarded(step.decode, lambda: self._decode(step))
            yield
        if step.prefill:
            self._guarded(_seqs_of(step.prefill), lambda: self._prefill(step))
            yield

    @torch.inference_mode()
    def _guarded(self, seqs: list[Sequence], forward: Callable[[], _Logits]) -> None:
        """A forward pass and what follows from it. If it raises, its own sequences fail and no others.

        If memory ran out, they are computed again later, with less at once.
        """
        try:
            self._advance(forward())
        except Exception as error:
            if _is_out_of_memory(error) and self._make_room(seqs):
                return
            # Whatever it is, the callers get an answer and the other sequences go on.
            logger.exception("a forward pass failed; requests %s", [seq.request.request_id for seq in seqs])
            self.is_broken = self.is_broken or self._fail_and_probe(seqs)

    def _make_room(self, seqs: list[Sequence]) -> bool:
        """Give back what memory can be given back, and send sequences to wait; False if nothing less can be tried."""
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        num_running = len(self._scheduler.running)
        if not self._scheduler.shrink(seqs):
            return False
        logger.warning("memory ran out with %d sequences: fewer run for a while", num_running)
        return True

    @torch.inference_mode()
    def _both(self, step: Step) -> _Logits | None:
        """None if it failed: tried apart, it shows whose fault it was."""
        try:
            logits = self._runner.mixed(_tokens(step), self._pieces(step))
        except Exception:
            logger.exception("a pass of decoded tokens and prompts failed; they are tried apart")
            return None
        decoded, prompts = self._decoded(step), self._prefilled(step)
        return _Logits(logits, decoded + prompts)

    def _decode(self, step: Step) -> _Logits:
        logits = self._runner.decode(_tokens(step))
        return _Logits(logits, self._decoded(step))

    def _prefill(self, step: Step) -> _Logits:
        logits = self._runner.prefill(self._pieces(step))
        return _Logits(logits, self._prefilled(step))

    def _pieces(self, step: Step) -> list[PromptPiece]:
        pieces = []
        for chunk in step.prefill:
            if chunk.seq.penalties is None and chunk.seq.request.sampling.has_penalties:
                prompt_ids = chunk.seq.request.prompt_ids
                chunk.seq.penalties = PenaltyState(prompt_ids, self._runner.vocab_size, self._runner.device)
            token_ids = chunk.seq.token_ids[chunk.start : chunk.end]
            pieces.append(PromptPiece(chunk.seq.block_ids, chunk.start, token_ids, chunk.is_last))
        return pieces

    def _decoded(self, step: Step) -> list[Sequence]:
        for seq in step.decode:
            self._scheduler.computed(seq, seq.num_computed + 1)
        return step.decode

    def _prefilled(self, step: Step) -> list[Sequence]:
        """Those that get a token."""
        for chunk in step.prefill:
            self._scheduler.computed(chunk.seq, chunk.end)
        return [chunk.seq for chunk in step.prefill if chunk.is_last]

    def _advance(self, logits: _Logits) -> None:
        """Sample a token for each sequence and send what became certain."""
        if not logits.seqs:
            return
        try:
            rows = [_row(seq) for seq in logits.seqs]
        except _NoGrammar as error:
            return self._without(logits, [logits.seqs.index(error.seq)])
        try:
            samples = sample(logits.rows, rows)
        except NotFinite as error:
            return self._without(logits, error.rows)
        now = time.monotonic()
        for seq, chosen in zip(logits.seqs, samples, strict=True):
            self._append(seq, chosen, now)

    def _without(self, logits: _Logits, bad: list[int]) -> None:
        """Fail the sequences of some rows, and go on with the others."""
        seqs = [logits.seqs[row] for row in bad]
        logger.error("no token can be chosen for requests %s", [seq.request.request_id for seq in seqs])
        self._fail(seqs)
        kept = [row for row in range(len(logits.seqs)) if row not in bad]
        self._advance(_Logits(logits.rows[kept], [logits.seqs[row] for row in kept]))

    def _append(self, seq: Sequence, chosen: Sample, now: float) -> None:
        if seq.penalties is not None:
            seq.penalties.add(chosen.token_id)
        text, reason = seq.append(chosen.token_id, chosen.logprob, self._end_ids, now)
        if reason is not None:
            self._finish(seq, reason, text)
        elif text:
            self._emit(seq, seq.take_delta(text))

    def _finish(self, seq: Sequence, reason: FinishReason, text: str) -> None:
        events = seq.last_events(reason, text, time.monotonic())
        self._scheduler.remove(seq)
        for event in events:
            self._emit(seq, event)

    def _fail_and_probe(self, seqs: list[Sequence]) -> bool:
        """Fail the sequences and try a token of nobody's: True if the fault is not theirs but the device's."""
        try:
            self._fail(seqs)
            self._runner.probe()
        except Exception:
            logger.exception("the model computes nothing any more")
            return True
        return False

    def _fail(self, seqs: Iterable[Sequence]) -> None:
        for seq in seqs:
            if seq in self._scheduler.running:  # else it was finished before the step broke
                self._scheduler.discard(seq)
                self._emit(seq, Failed(GenerationFailed("the model failed on this request")))


def _is_out_of_memory(error: Exception) -> bool:
    # torch's allocator for the CPU has no exception of its own.
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


class _NoGrammar(Exception):
    """A sequence's grammar has come to the end of what it may cost."""

    def __init__(self, seq: Sequence, reason: str) -> None:
        super().__init__(reason)
        self.seq = seq


def _row(seq: Sequence) -> Row:
    constraint = seq.request.constraint
    try:
        allowed = None if constraint is None else constraint.allowed()
    except GrammarError as error:
        raise _NoGrammar(seq, str(error)) from error
    return Row(seq.request.sampling, len(seq.token_ids), seq.penalties, allowed)


def _tokens(step: Step) -> list[NextToken]:
    return [NextToken(seq.block_ids, seq.num_computed, seq.token_ids[-1]) for seq in step.decode]


def _seqs_of(chunks: list[PrefillChunk]) -> list[Sequence]:
    return [chunk.seq for chunk in chunks]
