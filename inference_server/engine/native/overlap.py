"""Decodes with the host one step behind the device: launches a step before the host reads the previous step's tokens.

The device samples the tokens of a step and keeps them as input of the next step. Meanwhile the host processes the
tokens of the previous step. A step is launched early only if it continues the step in flight. This requires that no
prompt is computed, no sequence is admitted or preempted, and no row needs the host to choose its token. Otherwise the
host first reads the tokens of the step in flight, and the step loop plans the next step.

Freed blocks are safe. A sequence may end while a step in flight still writes to its blocks, and another sequence may
get these blocks. The passes of the other sequence run later on the same stream. They overwrite the keys and values that
the step in flight wrote, and read only keys and values that they wrote themselves. Blocks in the prefix cache are full,
and a step in flight writes to later blocks only.
"""

import math
import time
from dataclasses import dataclass, field

import torch
from torch import Tensor

from inference_server.engine.native.device_sampler import NOT_FINITE, DeviceSampler
from inference_server.engine.native.readback import StepBuffers
from inference_server.engine.native.running_batch import RunningBatch
from inference_server.engine.native.sampler import Row
from inference_server.engine.native.scheduling.scheduler import Scheduler
from inference_server.engine.native.scheduling.step_plan import StepPlan
from inference_server.engine.native.step_loop import StepLoop
from inference_server.engine.native.step_rows import Logits
from inference_server.engine.sequence import Sequence
from inference_server.model.runner import ModelRunner


@dataclass(slots=True, eq=False)
class _Step:
    """A decode step in flight."""

    seqs: list[Sequence]
    logits: Tensor
    buffers: StepBuffers
    skipped: list[Sequence] = field(default_factory=list)  # sequences whose input token in this step was undefined


class OverlappedDecoding:
    """Executor of overlapped decode steps.

    A step may stay in flight between calls. Used on the engine's thread only.
    """

    def __init__(self, runner: ModelRunner, scheduler: Scheduler, step_loop: StepLoop) -> None:
        """Allocate the buffers. `runner` must support overlap."""
        self._runner = runner
        self._scheduler = scheduler
        self._step_loop = step_loop
        self._buffers = [StepBuffers(len(runner.sampled), runner.device) for _ in range(2)]
        self._in_flight: _Step | None = None
        # Batch of the step in flight; None if no step may directly follow that step.
        self._batch: RunningBatch | None = None
        self._sampler: DeviceSampler | None = None  # sampler of self._batch
        self._num_changes = -1  # scheduler.num_changes when the batch was last checked
        self._deadline = math.inf  # time.monotonic() at which the earliest time limit of a request expires
        self._to_sort: list[Sequence] = []  # sequences whose shortlist was too short in an earlier step

    def start(self, plan: StepPlan) -> bool:
        """Launch a planned step and leave it in flight. Returns False if the step must run without overlap."""
        if plan.prefill or plan.drafts or not plan.decode or not all(map(_can_overlap, plan.decode)):
            return False
        batch = RunningBatch.first(plan.decode)
        self._num_changes = -1
        try:
            self._in_flight = self._launch(batch, is_new=True)
        except Exception as error:
            self._fail(plan.decode, error)
        return True

    def advance(self) -> bool:
        """Launch the step that continues the one in flight, then read the tokens of the earlier step.

        Returns False if no step can be launched this way. The tokens of the step in flight are then read, and the
        caller must plan the next step.
        """
        step, before = self._in_flight, self._batch
        batch = self._next_batch()
        if step is None or batch is None:
            self.flush()
            return False
        try:
            self._in_flight = self._launch(batch, is_new=batch is not before)
        except Exception as error:
            self.flush()
            self._fail(batch.seqs, error)
            return True
        self._step_loop.step_tokens.add(len(batch.seqs))
        self._read(step)
        return True

    def flush(self) -> None:
        """Read the tokens of the step in flight, if there is one."""
        step, self._in_flight, self._batch = self._in_flight, None, None
        if step is not None:
            self._read(step)

    def _next_batch(self) -> RunningBatch | None:
        """Return the batch of the next step, or None if no step may directly follow the step in flight."""
        if self._batch is None:
            return None
        has_changed = self._num_changes != self._scheduler.num_changes
        if has_changed:
            self._num_changes = self._scheduler.num_changes
            self._deadline = self._first_deadline()
        if time.monotonic() >= self._deadline or not self._scheduler.may_continue():
            return None
        return self._batch.next(self._scheduler, has_changed=has_changed)

    def _first_deadline(self) -> float:
        deadlines = [
            seq.arrived + seq.request.time_limit_seconds
            for seqs in (self._scheduler.waiting, self._scheduler.running)
            for seq in seqs
            if seq.request.time_limit_seconds is not None
        ]
        return min(deadlines, default=math.inf)

    @torch.inference_mode()
    def _launch(self, batch: RunningBatch, *, is_new: bool) -> _Step:
        if is_new or self._sampler is None:
            self._sampler = self._sampler_of(batch)
        self._batch = batch
        self._buffers.reverse()
        buffers, sampler = self._buffers[0], self._sampler
        keys = sampler.next_keys()
        logits = self._runner.decode(batch.tokens)
        token_ids = sampler.sample(logits, None if keys is None else buffers.upload_keys(keys))
        # The next step must not use a marker as a token id.
        torch.clamp(token_ids, min=0, out=self._runner.sampled[: len(token_ids)])
        buffers.start(token_ids)
        return _Step(batch.seqs, logits, buffers)

    def _sampler_of(self, batch: RunningBatch) -> DeviceSampler:
        self._to_sort = [seq for seq in self._to_sort if seq in batch.seqs]
        rows = [
            Row(seq.request.sampling, token.position + 1, seq.penalties)
            for seq, token in zip(batch.seqs, batch.tokens, strict=True)
        ]
        return DeviceSampler(rows, self._runner.device, [batch.seqs.index(seq) for seq in self._to_sort])

    def _read(self, step: _Step) -> None:
        """Append the tokens of a launched step to its sequences.

        If reading them raises, all sequences of the step fail.
        """
        try:
            token_ids = step.buffers.read()
            now = time.monotonic()
            append, marked = self._step_loop.append, []
            self._scheduler.decoded([seq for seq in step.seqs if seq.block_ids and seq not in step.skipped])
            for row, (seq, token_id) in enumerate(zip(step.seqs, token_ids, strict=True)):
                if not seq.block_ids or seq in step.skipped:  # a sequence without blocks has ended or was cancelled
                    continue
                if token_id >= 0:
                    append(seq, token_id, None, now)
                else:
                    marked.append(row)
            if marked:
                self._sample_again(step, marked, token_ids)
        except Exception as error:
            self._in_flight = self._batch = None  # the step in flight has tokens of the failed step as input
            self._fail(step.seqs, error)

    def _sample_again(self, step: _Step, rows: list[int], token_ids: list[int]) -> None:
        """Sample rows on the host that the device could not sample.

        The step in flight has undefined input tokens for these rows, so its results for them are skipped.
        """
        seqs = [step.seqs[row] for row in rows]
        if self._in_flight is not None:
            self._in_flight.skipped = seqs
        self._batch = None
        self._to_sort += [step.seqs[row] for row in rows if token_ids[row] != NOT_FINITE]
        for seq in seqs:
            # The step in flight has counted a token that was sampled after the undefined input token, so the state is
            # built again.
            if seq.penalties is not None:
                seq.penalties = self._step_loop.penalties_of(seq)
        with torch.inference_mode():
            self._step_loop.sample(Logits(step.logits[rows], seqs))

    def _fail(self, seqs: list[Sequence], error: Exception) -> None:
        self._batch = None
        for seq in seqs:
            # The state may count tokens that were never read; a preempted sequence gets a new state.
            seq.penalties = None
        self._step_loop.recovery.pass_failed(seqs, error)


def _can_overlap(seq: Sequence) -> bool:
    """Return True if the device can sample the sequence's tokens without the host."""
    return seq.request.constraint is None and seq.request.sampling.logprobs is None
