"""What vLLM tells of its steps: that there was one, and how full the KV cache is. vLLM calls it on the event loop."""

from collections.abc import Callable
from typing import Any


class Steps:
    def __init__(self) -> None:
        self.on_step: Callable[[], None] = lambda: None
        self._usage: dict[int, float] = {}  # by replica of the model

    def logger(self, config: Any, replica: int = 0) -> "_StepLogger":
        """A factory of loggers, as vLLM wants one."""
        return _StepLogger(self, replica)

    @property
    def cache_usage(self) -> float:
        """Part of the KV cache's blocks that sequences hold, 0 to 1."""
        return sum(self._usage.values()) / len(self._usage) if self._usage else 0.0

    def record(self, replica: int, usage: float) -> None:
        self._usage[replica] = usage
        self.on_step()


class _StepLogger:
    """vLLM's StatLoggerBase."""

    def __init__(self, steps: Steps, replica: int) -> None:
        self._steps = steps
        self._replica = replica

    def record(self, scheduler_stats: Any, iteration_stats: Any, *_: Any, **__: Any) -> None:
        if scheduler_stats is not None:
            self._steps.record(self._replica, scheduler_stats.kv_cache_usage)

    def log(self) -> None: ...
    def log_engine_initialized(self) -> None: ...
    def record_sleep_state(self, *_: Any) -> None: ...
