"""Defines the compared engines (subjects). Each runs prompts and records the arrival times of tokens, in seconds."""

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any, NoReturn, Protocol

import torch
from transformers import ContinuousBatchingConfig, GenerationConfig

from benchmarks.gpu.checks import LeftOut, Setup
from benchmarks.gpu.runners import MAX_SEQS, MAX_TOKENS, cache_tokens, make_runner, start_engine
from inference_server.generation import Completed, Delta, Failed, GenerationRequest, SamplingParams

_LONGEST_SECONDS = 120.0  # for one load


@dataclass(slots=True)
class Reply:
    """Tokens of a reply, and the arrival times of the first and the last token since the start of the load."""

    first: float = 0.0
    last: float = 0.0
    token_ids: list[int] = field(default_factory=list)

    def add(self, token_ids: list[int], now: float) -> None:
        """Append tokens that arrived together."""
        if token_ids and not self.token_ids:
            self.first = now
        self.token_ids += token_ids
        self.last = now


Prompts = list[list[int]]


class Subject(Protocol):
    """An engine with a model."""

    def run(self, prompts: Prompts, num_tokens: int) -> list[Reply]:
        """Generate a greedy reply of `num_tokens` tokens for every prompt, all at the same time."""

    def close(self) -> None:
        """Stop the subject's threads. Its memory is freed when the subject is deleted."""


class _Numbers:
    """A text decoder that returns token ids as text, so that the engine runs without a tokenizer."""

    stop_string = None
    num_reasoning_tokens = 0

    def push(self, token_id: int) -> str:
        return f"{token_id} "

    def finish(self) -> str:
        return ""


class Tailrace:
    """Tailrace's engine, without its servers."""

    def __init__(
        self,
        _setup: Setup,
        model: Any,
        *,
        max_seqs: int = MAX_SEQS,
        max_tokens: int = MAX_TOKENS,
        invariant: bool = False,
    ) -> None:
        """Start the engine. See runners.make_runner for the arguments."""
        self.runner = make_runner(model, max_seqs=max_seqs, max_tokens=max_tokens, invariant=invariant)
        self._loop = asyncio.new_event_loop()
        self._engine = self._loop.run_until_complete(start_engine(self.runner, max_seqs, invariant))

    def run(self, prompts: Prompts, num_tokens: int) -> list[Reply]:
        """See Subject.run. Raises RuntimeError if a request fails, and TimeoutError after two minutes."""

        async def everything() -> list[Reply]:
            start = time.perf_counter()
            replies = asyncio.gather(*(self._one(prompt, num_tokens, start) for prompt in prompts))
            return await asyncio.wait_for(replies, _LONGEST_SECONDS)

        return self._loop.run_until_complete(everything())

    async def _one(self, prompt: list[int], num_tokens: int, start: float) -> Reply:
        request = GenerationRequest(
            request_id="bench",
            prompt_ids=prompt,
            sampling=SamplingParams(seed=1, temperature=0.0, ignore_eos=True),
            max_tokens=num_tokens,
        )
        result = Reply()
        async with self._engine.submit(request, _Numbers()) as reply:
            async for event in reply:
                if isinstance(event, Delta):
                    result.add([int(each) for each in event.text.split()], time.perf_counter() - start)
                elif isinstance(event, Failed):
                    raise RuntimeError(f"the request failed: {event.error}")
                elif isinstance(event, Completed) and event.usage.completion_tokens != num_tokens:
                    raise RuntimeError(f"{event.usage.completion_tokens} tokens instead of {num_tokens}")
        return result

    def close(self) -> None:
        """Stop the engine's thread."""
        self._loop.run_until_complete(self._engine.stop())
        self._loop.close()
        del self._engine, self.runner


class _Arrivals:
    """A streamer for transformers' `generate`, which passes the prompts first, then the tokens of each step."""

    def __init__(self, count: int) -> None:
        self.replies = [Reply() for _ in range(count)]
        self._start = time.perf_counter()
        self._has_prompts = False

    def put(self, token_ids: Any) -> None:
        now = time.perf_counter() - self._start
        if self._has_prompts:
            for reply, token_id in zip(self.replies, token_ids.flatten().tolist(), strict=True):
                reply.add([token_id], now)
        self._has_prompts = True

    def end(self) -> None:
        """Do nothing at the end of the generation."""


@dataclass
class Generate:
    """transformers' `generate`, all prompts as one static batch."""

    setup: Setup
    model: Any

    def run(self, prompts: Prompts, num_tokens: int) -> list[Reply]:
        """See Subject.run. The prompts have equal lengths."""
        ids = torch.tensor(prompts, device=self.model.device)
        self.setup.wait()
        arrivals = _Arrivals(len(prompts))
        with torch.inference_mode():
            self.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                pad_token_id=0,
                max_new_tokens=num_tokens,
                streamer=arrivals,
            )
        return arrivals.replies

    def close(self) -> None:
        """Do nothing: there are no threads."""


class ContinuousBatching:
    """transformers' own continuous batching."""

    def __init__(self, _setup: Setup, model: Any) -> None:
        """Start the thread of transformers' batching."""
        config = GenerationConfig(do_sample=False, eos_token_id=-1, max_new_tokens=MAX_TOKENS)
        # On a GPU, transformers chooses the size of its KV cache. On a CPU, it must be given the number of blocks.
        self._is_cuda = model.device.type == "cuda"
        sizes = {} if self._is_cuda else {"block_size": 32, "num_blocks": cache_tokens(model) // 32}
        batching = ContinuousBatchingConfig(**sizes)
        self._manager = model.init_continuous_batching(generation_config=config, continuous_batching_config=batching)
        self._manager.start()

    def run(self, prompts: Prompts, num_tokens: int) -> list[Reply]:
        """See Subject.run. Raises TimeoutError after two minutes."""
        start = time.perf_counter()
        replies = {
            self._manager.add_request(each, max_new_tokens=num_tokens, streaming=True, eos_token_id=-1): Reply()
            for each in prompts
        }
        unfinished = set(replies)
        while unfinished:
            if time.perf_counter() - start > _LONGEST_SECONDS:
                raise TimeoutError(f"continuous batching did not end within {_LONGEST_SECONDS:.0f} s")
            output = self._manager.get_result(timeout=1.0)
            if output is None and not self._manager.is_running():
                self._fail("its thread has ended, and gpu.log contains the reason")
            if output is None or output.request_id not in replies:
                continue
            if getattr(output, "error", None):
                self._fail(output.error)
            reply = replies[output.request_id]
            reply.add(output.generated_tokens[len(reply.token_ids) :], time.perf_counter() - start)
            if output.is_finished():
                unfinished.discard(output.request_id)
        return list(replies.values())

    def _fail(self, reason: str) -> NoReturn:
        if self._is_cuda:
            raise RuntimeError(f"continuous batching failed: {reason}")
        # Not a failure on a CPU: without psutil, some releases of transformers cannot find the size of its memory.
        raise LeftOut(f"continuous batching does not run on this CPU: {reason}")

    def close(self) -> None:
        """Stop the thread of transformers' batching."""
        self._manager.stop(block=True)
        del self._manager
