"""Runs the engine's steps: with host and device work overlapped if the runner supports it, else in sequence."""

import time
from collections.abc import Callable, Iterator, Set

from inference_server.engine.histogram import Histogram
from inference_server.engine.native.fault_recovery import Emit
from inference_server.engine.native.overlap import OverlappedDecoding
from inference_server.engine.native.sampler import Sample
from inference_server.engine.native.scheduling.scheduler import Scheduler
from inference_server.engine.native.speculation.drafting import Drafting
from inference_server.engine.native.step_loop import StepLoop
from inference_server.engine.native.step_rows import Logits, sample_tokens
from inference_server.model.runner import ModelRunner


class Stepper:
    """Executor of an engine's steps. Used on the engine's thread only."""

    def __init__(
        self,
        runner: ModelRunner,
        scheduler: Scheduler,
        end_ids: Set[int],
        emit: Emit,
        sample: Callable[[Logits], list[Sample]] = sample_tokens,
        drafting: Drafting | None = None,
    ) -> None:
        """Create an executor without a step in flight. For the arguments, see StepLoop."""
        self._step_loop = StepLoop(runner, scheduler, end_ids, emit, sample, drafting)
        self._scheduler = scheduler
        self._drafting = drafting
        self._launched: float | None = None  # time at which the last step was launched; None if it did not overlap
        # Any other `sample` function needs the logits on the host before the next step, so steps do not overlap.
        can_overlap = runner.supports_overlap and sample is sample_tokens
        self._overlap = OverlappedDecoding(runner, scheduler, self._step_loop) if can_overlap else None

    @property
    def is_broken(self) -> bool:
        """True if the model can no longer compute even a single token."""
        return self._step_loop.is_broken

    @property
    def step_tokens(self) -> Histogram:
        """Tokens computed in each step, without empty steps."""
        return self._step_loop.step_tokens

    def run(self) -> Iterator[None]:
        """Run one step. Yields after each part that may emit events, so that they are published before the next part.

        With overlap, the tokens of the step are emitted by the next call, or by `flush`.
        """
        if self._overlap is not None:
            is_launched = not self._expects_drafts() and self._overlap.advance()
            self._measure(is_launched)
            yield
            if is_launched or self.is_broken:
                return
        plan = self._step_loop.begin()
        yield
        if self._overlap is None or not self._overlap.start(plan):
            yield from self._step_loop.passes(plan)

    def _measure(self, is_launched: bool) -> None:
        """Record the time between the launches of two successive overlapped steps."""
        if self._drafting is None:
            return
        now = time.perf_counter()
        if is_launched and self._launched is not None:
            self._drafting.costs.add(len(self._scheduler.running) or 1, now - self._launched)
        self._launched = now if is_launched else None

    def _expects_drafts(self) -> bool:
        """Return True if the next step should have draft tokens. The step in flight is then read first."""
        if self._overlap is None or self._drafting is None or not self._drafting.expects(self._scheduler.running):
            return False
        self._overlap.flush()
        return True

    def flush(self) -> None:
        """Wait for the step in flight, if there is one, and emit its tokens."""
        if self._overlap is not None:
            self._overlap.flush()
