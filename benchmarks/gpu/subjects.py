"""Runs prompts on each of the compared engines and measures when tokens arrive. Times are in seconds."""

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import ContinuousBatchingConfig, GenerationConfig

from inference_server.attention.kv_cache import BLOCK_SIZE
from inference_server.engine.admission import CapacityLimits
from inference_server.engine.native.engine import Engine
from inference_server.engine.native.scheduler import Policy
from inference_server.generation import Delta, GenerationRequest, SamplingParams
from inference_server.model.runner import ModelRunner

MAX_TOKENS = 2048
MAX_SEQS = 64


@dataclass
class Timing:
    """Times of a reply's first and last token, from the start of the load, and its number of tokens."""

    first: float
    last: float
    count: int


Prompts = list[list[int]]


class NoText:
    """A decoder that turns each token into one character, so that the engine runs without a tokenizer."""

    stop_string = None

    def push(self, token_id: int) -> str:
        return "."

    def finish(self) -> str:
        return ""


@dataclass
class Tailrace:
    """Tailrace's engine, without its servers."""

    model: Any
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)

    def __post_init__(self) -> None:
        runner = ModelRunner(
            self.model,
            num_blocks=MAX_SEQS * MAX_TOKENS // BLOCK_SIZE,
            max_len=MAX_TOKENS,
            max_seqs=MAX_SEQS,
        )
        runner.probe()
        runner.record_graphs()
        self._engine = self._loop.run_until_complete(self._start(runner))

    async def _start(self, runner: ModelRunner) -> Engine:
        policy = Policy(max_running_seqs=MAX_SEQS, prefill_chunk_tokens=512, idle_chunk_tokens=2048)
        limits = CapacityLimits(slots=MAX_SEQS, waiting_seqs=1000, waiting_tokens=10_000_000)
        return Engine(runner, end_ids=set(), policy=policy, limits=limits, max_unused_blocks=0)

    def run(self, prompts: Prompts, num_tokens: int) -> list[Timing]:
        async def everything() -> list[Timing]:
            start = time.perf_counter()
            return await asyncio.gather(*(self._one(prompt, num_tokens, start) for prompt in prompts))

        return self._loop.run_until_complete(everything())

    async def _one(self, prompt: list[int], num_tokens: int, start: float) -> Timing:
        request = GenerationRequest(
            request_id="bench",
            prompt_ids=prompt,
            sampling=SamplingParams(seed=1, temperature=0.0, ignore_eos=True),
            max_tokens=num_tokens,
        )
        times: list[float] = []
        async with self._engine.submit(request, NoText()) as reply:
            async for event in reply:
                if isinstance(event, Delta):
                    times += [time.perf_counter() - start] * event.num_tokens
        return Timing(times[0], times[-1], len(times))

    def close(self) -> None:
        self._loop.run_until_complete(self._engine.stop())
        self._loop.close()


@dataclass
class Generate:
    """transformers' `generate`, all prompts as one static batch."""

    model: Any

    def run(self, prompts: Prompts, num_tokens: int) -> list[Timing]:
        ids = torch.tensor(prompts, device=self.model.device)
        options = {"attention_mask": torch.ones_like(ids), "do_sample": False, "pad_token_id": 0}
        start = time.perf_counter()
        with torch.inference_mode():
            self.model.generate(ids, max_new_tokens=1, **options)
            self._wait()
            first = time.perf_counter() - start
            start = time.perf_counter()
            self.model.generate(ids, max_new_tokens=num_tokens, **options)
            self._wait()
        last = time.perf_counter() - start
        return [Timing(first, last, num_tokens) for _ in prompts]

    def _wait(self) -> None:
        if self.model.device.type == "cuda":
            torch.cuda.synchronize()

    def close(self) -> None:
        pass


@dataclass
class ContinuousBatching:
    """transformers' own continuous batching."""

    model: Any

    def run(self, prompts: Prompts, num_tokens: int) -> list[Timing]:
        config = GenerationConfig(do_sample=False, eos_token_id=-1, max_new_tokens=num_tokens)
        batching = ContinuousBatchingConfig(block_size=32, num_blocks=MAX_SEQS * MAX_TOKENS // 32)
        manager = self.model.init_continuous_batching(generation_config=config, continuous_batching_config=batching)
        manager.start()
        try:
            self._drive(manager, prompts[:1], 8)  # its first request is a warm-up
            return self._drive(manager, prompts, num_tokens)
        finally:
            manager.stop(block=True)

    def _drive(self, manager: Any, prompts: Prompts, num_tokens: int) -> list[Timing]:
        start = time.perf_counter()
        names = [
            manager.add_request(prompt, max_new_tokens=num_tokens, streaming=True, eos_token_id=-1)
            for prompt in prompts
        ]
        timings: dict[str, Timing] = {}
        finished: set[str] = set()
        while len(finished) < len(names):
            if time.perf_counter() - start > 120:
                raise TimeoutError("continuous batching did not end within 120 s")
            output = manager.get_result(timeout=1.0)
            if output is None or output.request_id not in names:
                continue
            now = time.perf_counter() - start
            timing = timings.setdefault(output.request_id, Timing(now, now, 0))
            timing.last, timing.count = now, len(output.generated_tokens)
            if output.is_finished():
                finished.add(output.request_id)
        return list(timings.values())

    def close(self) -> None:
        pass
