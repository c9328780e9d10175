"""Measures the host's work in a decode step, with a model that computes nothing.

`python -m benchmarks.features.host_step` prints the CPU's name. For each kind of sampling and for 1, 8 and 64 running
sequences, it prints milliseconds per step in three parts:

- step: CPU time of the engine's thread without the launches. It contains scheduling, the arguments of the decode pass, the
  read-back of the tokens, their texts (a decoder with one character per token), and the events.
- launches: CPU time in which the engine's thread launches the operations of sampling. The vocabulary is small, so that
  on a CPU the operations themselves take little time. The model's own launches are not measured.
- event loop: CPU time of the event loop, which delivers the events to the replies.
"""

import argparse
import asyncio
import statistics
import threading
import time
from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from benchmarks.machine import describe
from inference_server.attention.kv_cache import NUM_SCRATCH_BLOCKS
from inference_server.engine.admission import CapacityLimits
from inference_server.engine.native import step_rows
from inference_server.engine.native.device_sampler import DeviceSampler
from inference_server.engine.native.engine import Engine
from inference_server.engine.native.sampler import sample
from inference_server.engine.native.scheduling.step_plan import Policy
from inference_server.generation import GenerationRequest, SamplingParams
from inference_server.model.runner import NextToken, PromptPiece
from inference_server.text.detokenizer import reply_text

_VOCAB_SIZE = 64
_BLOCK_SIZE = 32
_SAMPLINGS = {
    "greedy": {"temperature": 0.0},
    "sampled": {"temperature": 0.7},
    "top_p": {"temperature": 0.7, "top_p": 0.9},
}


@dataclass
class _Cache:
    num_blocks: int
    block_size: int = _BLOCK_SIZE


@dataclass
class _NoModel:
    """A runner whose passes return rows of a fixed tensor. Records the thread's CPU time at passes of all rows."""

    num_rows: int
    supports_overlap: bool
    num_steps: int
    cpu_times: list[float] = field(default_factory=list)
    supports_mixed_batch: bool = False
    vocab_size: int = _VOCAB_SIZE
    device: torch.device = torch.device("cpu")

    def __post_init__(self) -> None:
        blocks_per_sequence = (self.num_steps + 64) // _BLOCK_SIZE + 2
        self.cache = _Cache(self.num_rows * blocks_per_sequence + NUM_SCRATCH_BLOCKS)
        self.sampled = torch.zeros(self.num_rows, dtype=torch.int64)
        self.done = threading.Event()
        self._logits = torch.randn(self.num_rows, _VOCAB_SIZE)

    def prefill(self, pieces: Items[PromptPiece]) -> Tensor:
        return self._logits[: len(pieces)].clone()

    def decode(self, tokens: Items[NextToken]) -> Tensor:
        if len(tokens) == self.num_rows:
            self.cpu_times.append(time.thread_time())
        if len(self.cpu_times) == self.num_steps:
            self.done.set()
        return self._logits[: len(tokens)]

    def probe(self) -> None:
        """Do nothing."""


def _letters(token_ids: list[int]) -> str:
    return "x" * len(token_ids)


class _Launches:
    """Records the CPU time of each call that launches the operations of sampling. Wraps these functions permanently."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        DeviceSampler.sample = self._timed(DeviceSampler.sample)  # type: ignore[method-assign]
        step_rows.sample = self._timed(sample)  # type: ignore[attr-defined]

    def _timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: object) -> Any:
            start = time.thread_time()
            result = function(*arguments)
            self.seconds.append(time.thread_time() - start)
            return result

        return call


async def _measure(
    launches: _Launches, num_rows: int, num_steps: int, sampling: dict[str, float], overlap: bool
) -> tuple[float, float, float]:
    """Return milliseconds per step: the engine's thread without launches, the launches of sampling, and the event loop."""
    launches.seconds.clear()
    runner = _NoModel(num_rows, overlap, num_steps)
    limits = CapacityLimits(slots=num_rows, waiting_seqs=num_rows, waiting_tokens=10**6)
    policy = Policy(max_running_seqs=num_rows, prefill_chunk_tokens=10**4, idle_chunk_tokens=10**4)
    engine = Engine(runner, end_ids=frozenset(), policy=policy, limits=limits)  # type: ignore[arg-type]
    for row in range(num_rows):
        # Prompts of different lengths, so that sequences need their next blocks in different steps.
        request = GenerationRequest(
            request_id=str(row),
            prompt_ids=[1] * (row % _BLOCK_SIZE + 1),
            sampling=SamplingParams(seed=row, ignore_eos=True, **sampling),  # type: ignore[arg-type]
            max_tokens=num_steps + 30,
        )
        engine.submit(request, reply_text(_letters, request))
    before = time.thread_time()
    await asyncio.to_thread(runner.done.wait)
    loop_seconds = time.thread_time() - before
    await engine.stop()
    times = runner.cpu_times[num_steps // 10 :]
    steps = [later - earlier for earlier, later in zip(times, times[1:], strict=False)]
    launching = statistics.median(launches.seconds)
    return 1e3 * (statistics.median(steps) - launching), 1e3 * launching, 1e3 * loop_seconds / num_steps


def main() -> None:
    """Measure each kind of sampling and number of rows, and print a line for it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, default=1000, help="decode steps for each figure")
    parser.add_argument("--no-overlap", action="store_true", help="wait for the tokens of every step")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    launches = _Launches()
    print(f"{describe()['cpu']}, milliseconds a step (medians; event loop: mean)")
    print("sampling   rows    step  launches  event loop", flush=True)
    for name, sampling in _SAMPLINGS.items():
        for num_rows in (1, 8, 64):
            measured = _measure(launches, num_rows, arguments.steps, sampling, not arguments.no_overlap)
            step, launching, loop = asyncio.run(measured)
            print(f"{name:10} {num_rows:4}  {step:6.3f}  {launching:8.3f}  {loop:10.3f}", flush=True)


if __name__ == "__main__":
    main()
