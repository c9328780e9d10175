"""Collects vLLM's statistics: tokens per step, use of the KV cache, prefix-cache hits. Runs on the event loop."""

from collections.abc import Callable
from typing import Any

from inference_server.engine.histogram import STEP_TOKENS, Histogram


class StepStats:
    """Statistics of all replicas of a model.

    Attributes:
        on_step: Called after each step; the engine sets it.
        tokens: Distribution of the tokens computed in each step.
        num_queried_tokens: Prompt tokens looked up in the prefix cache since the start.
        num_hit_tokens: Prompt tokens found in the prefix cache.
        num_preemptions: Preemptions since the start.
    """

    def __init__(self) -> None:
        """Create statistics without steps."""
        self.on_step: Callable[[], None] = lambda: None
        self._usage: dict[int, float] = {}  # share of the KV cache in use, by replica
        self.tokens = Histogram(STEP_TOKENS)
        self.num_queried_tokens = self.num_hit_tokens = self.num_preemptions = 0

    def logger(self, config: Any, replica: int = 0) -> "_StepLogger":
        """Return a statistics logger. vLLM calls this factory once for each replica."""
        return _StepLogger(self, replica)

    @property
    def cache_usage(self) -> float:
        """Share of the KV cache's blocks that sequences hold, 0 to 1."""
        return sum(self._usage.values()) / len(self._usage) if self._usage else 0.0

    def record(self, replica: int, scheduler_stats: Any, iteration_stats: Any) -> None:
        """Add vLLM's SchedulerStats and IterationStats of one step; each may be None."""
        if scheduler_stats is not None:
            self._usage[replica] = scheduler_stats.kv_cache_usage
            self.num_queried_tokens += scheduler_stats.prefix_cache_stats.queries
            self.num_hit_tokens += scheduler_stats.prefix_cache_stats.hits
        if iteration_stats is not None:
            self.num_preemptions += iteration_stats.num_preempted_reqs
            if num_tokens := iteration_stats.num_prompt_tokens + iteration_stats.num_generation_tokens:
                self.tokens.add(num_tokens)
        self.on_step()


class _StepLogger:
    """Implementation of vLLM's StatLoggerBase."""

    def __init__(self, steps: StepStats, replica: int) -> None:
        self._steps = steps
        self._replica = replica

    def record(self, scheduler_stats: Any, iteration_stats: Any, *_: Any, **__: Any) -> None:
        self._steps.record(self._replica, scheduler_stats, iteration_stats)

    def log(self) -> None: ...
    def log_engine_initialized(self) -> None: ...
    def record_sleep_state(self, *_: Any) -> None: ...
