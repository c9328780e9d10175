"""Measures the host's work of a decode step: with a model that does nothing, what is left is the host's.

`python -m benchmarks.host_step` prints the CPU and, for 1, 8 and 64 running sequences, milliseconds a step: the CPU time of
the engine's thread, and that of the event loop, which delivers the events to the replies.

Included: scheduling, the arguments of the decode pass, reading the tokens, texts (a decoder with one character per token), events,
and the launches of sampling, on logits so few that they cost little more than their launches. Not included: the model's launches.
"""

import argparse
import asyncio
import statistics
import threading
import time
from collections.abc import Sequence as Items
from dataclasses import dataclass, field

import torch
from torch import Tensor

from benchmarks.machine import describe
from inference_server.attention.kv_cache import NUM_SCRATCH_BLOCKS
from inference_server.engine.admission import CapacityLimits
from inference_server.engine.native.engine import Engine
from inference_server.engine.native.scheduler import Policy
from inference_server.generation import GenerationRequest, SamplingParams
from inference_server.model.runner import NextToken, PromptPiece
from inference_server.text.detokenizer import reply_text

_VOCAB_SIZE = 64
_BLOCK_SIZE = 32
_SAMPLINGS = {"greedy": {"temperature": 0.0}, "sampled": {"temperature": 0.7}, "top_p": {"temperature": 0.7, "top_p": 0.9}}


@dataclass
class _Cache:
    num_blocks: int
    block_size: int = _BLOCK_SIZE


@dataclass
class _NoModel:
    """A runner whose passes return a fixed tensor, and which notes the thread's CPU time at each decode pass."""

    num_rows: int
    supports_overlap: bool
    num_steps: int
    cpu_times: list[float] = field(default_factory=list)
    supports_mixed_batch: bool = False
    vocab_size: int = _VOCAB_SIZE
    device: torch.device = torch.device("cpu")

    def __post_init__(self) -> None:
        tokens = (self.num_steps + 64) // _BLOCK_SIZE + 2
        self.cache = _Cache(self.num_rows * tokens + NUM_SCRATCH_BLOCKS)
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


async def _measure(num_rows: int, num_steps: int, sampling: dict[str, float], overlap: bool) -> tuple[float, float]:
    """Return milliseconds a step of the engine's thread and of the event loop's."""
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
    while not runner.done.is_set():
        await asyncio.sleep(0.01)
    loop_seconds = time.thread_time() - before
    await engine.stop()
    times = runner.cpu_times[num_steps // 10 :]
    steps = [later - earlier for earlier, later in zip(times, times[1:], strict=False)]
    return 1e3 * statistics.median(steps), 1e3 * loop_seconds / num_steps


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, default=1000, help="decode steps for each figure")
    parser.add_argument("--no-overlap", action="store_true", help="wait for the tokens of every step")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{describe()['cpu']}; milliseconds a step: the engine's thread (median), the event loop (mean)", flush=True)
    for name, sampling in _SAMPLINGS.items():
        for num_rows in (1, 8, 64):
            step, loop = asyncio.run(_measure(num_rows, arguments.steps, sampling, not arguments.no_overlap))
            print(f"{name:8} {num_rows:3} rows  {step:6.3f}  {loop:6.3f}", flush=True)


if __name__ == "__main__":
    main()
