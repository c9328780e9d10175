"""Hosts tiny models on the simulated GPU, from their folder to streamed replies."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from inference_server.engine.native import build as native
from inference_server.generation import LogitBias, SamplingParams
from inference_server.serving.catalog import CatalogEntry
from inference_server.serving.hosted_model import HostedModel
from inference_server.serving.startup import load_all
from inference_server.settings.server import Settings
from tests.support.engines import Recorder, collect, request

LENGTHS = (5, 30, 31, 90, 70, 33)  # prompts of one block and of several, some of whole blocks
SAMPLINGS = {
    "greedy": {"temperature": 0.0},
    "temperature": {"temperature": 0.9},
    "top_k and top_p": {"temperature": 0.8, "top_k": 20, "top_p": 0.9},
    "min_p and bias": {"temperature": 2.0, "min_p": 0.1, "logit_bias": LogitBias.of({259: -100.0, 300: 4.5})},
    "penalties and logprobs": {
        "temperature": 0.7,
        "repetition_penalty": 1.2,
        "presence_penalty": 0.5,
        "logprobs": 3,
    },
}
SETTINGS: dict[str, object] = {
    "device": "cuda",
    "max_running_seqs": 8,
    "kv_cache_tokens": 2048,
    "prefill_chunk_tokens": 64,
    "prefill_idle_tokens": 64,
    "prefix_cache": "off",
}


def prompt(length: int, number: int = 0) -> list[int]:
    """Return token ids that differ from prompt to prompt."""
    return [259 + (7 * number + 3 * place + place * place // 5) % 140 for place in range(length)]


PROMPTS = [prompt(length, number) for number, length in enumerate(LENGTHS)]


@asynccontextmanager
async def serving(entry: CatalogEntry, *, builder: Any = native, **settings: object) -> AsyncIterator[HostedModel]:
    """Load a model through the server's own start-up, and stop its engine at the end."""
    hosted = await load_all([entry], Settings(**{**SETTINGS, **settings}), lambda: None, {"tailrace": lambda: builder})
    try:
        yield hosted[entry.name]
    finally:
        await hosted[entry.name].engine.stop()


@dataclass
class Reply:
    """The tokens of one request, and the error that ended it."""

    token_ids: list[int]
    error: BaseException | None


async def replies(
    model: HostedModel, prompts: list[list[int]], max_tokens: int = 6, adapters: Sequence[int] = (), **sampling: Any
) -> list[Reply]:
    """Submit all prompts together, and return the replies in their order. `adapters`: the LoRA adapter of each prompt."""
    recorder = Recorder(model)
    params = SamplingParams(seed=1, ignore_eos=True, **sampling)

    async def reply(number: int, prompt_ids: list[int]) -> Reply:
        name, error = f"{id(recorder)}-{number}", None
        adapter = adapters[number] if adapters else 0
        generation = request(prompt_ids, request_id=name, sampling=params, max_tokens=max_tokens, adapter=adapter)
        try:
            async with asyncio.timeout(60):
                await collect(model, generation)
        except Exception as raised:
            error = raised
        return Reply(list(recorder.completion(name, len(prompt_ids))), error)

    return await asyncio.gather(*(reply(number, prompt_ids) for number, prompt_ids in enumerate(prompts)))
