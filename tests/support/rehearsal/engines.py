"""Hosts tiny models on the simulated GPU, from their folder to streamed replies, and computes the replies to expect."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from inference_server.engine.native import build
from inference_server.generation import SamplingParams
from inference_server.serving.catalog import CatalogEntry
from inference_server.serving.hosted_model import HostedModel
from inference_server.serving.startup import load_all
from inference_server.settings import Settings
from tests.support.engines import Recorder, collect, request

LENGTHS = (5, 30, 31, 90, 70, 33)  # prompts of one block and of several, some of whole blocks
SAMPLINGS = {
    "greedy": {"temperature": 0.0},
    "temperature": {"temperature": 0.9},
    "top_k and top_p": {"temperature": 0.8, "top_k": 20, "top_p": 0.9},
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
async def serving(*entries: CatalogEntry, **settings: object) -> AsyncIterator[HostedModel]:
    """Load entries with the same weights through the server's own start-up. Yields the first."""
    hosted = await load_all(list(entries), Settings(**{**SETTINGS, **settings}), lambda: None, {"tailrace": lambda: build})
    try:
        yield next(iter(hosted.values()))
    finally:
        for engine in {model.engine for model in hosted.values()}:
            await engine.stop()


@dataclass
class Reply:
    """What became of one request."""

    token_ids: list[int]
    error: BaseException | None


async def replies(model: HostedModel, prompts: list[list[int]], max_tokens: int = 6, **sampling: Any) -> list[Reply]:
    """Submit all prompts at once, and return the replies in their order."""
    recorder = Recorder(model)
    params = SamplingParams(seed=1, ignore_eos=True, **sampling)

    async def reply(number: int, prompt_ids: list[int]) -> Reply:
        name, error = f"{id(recorder)}-{number}", None
        generation = request(prompt_ids, request_id=name, sampling=params, max_tokens=max_tokens)
        try:
            async with asyncio.timeout(60):
                await collect(model, generation)
        except Exception as raised:
            error = raised
        return Reply(list(recorder.completion(name, len(prompt_ids))), error)

    return await asyncio.gather(*(reply(number, prompt_ids) for number, prompt_ids in enumerate(prompts)))


def expected(
    folder: Path,
    prompts: list[list[int]],
    max_tokens: int = 6,
    *,
    dtype: torch.dtype = torch.float16,
    quantization: BitsAndBytesConfig | None = None,
    is_dequantized: bool = False,
) -> list[list[int]]:
    """Return the greedy replies of transformers' generate on the CPU.

    Args:
        folder: The model.
        prompts: Token ids.
        max_tokens: Length of the replies.
        dtype: Dtype of weights and activations.
        quantization: Quantization of the linear layers.
        is_dequantized: True multiplies by the dequantized weights, False by bitsandbytes' own product.
    """
    model: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation="eager", quantization_config=quantization, device_map={"": "cpu"}
    )
    if is_dequantized:
        model = model.dequantize()
    generated = []
    for prompt_ids in prompts:
        ids = torch.tensor([prompt_ids])
        output = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=max_tokens,
            eos_token_id=None,
            pad_token_id=0,
        )
        generated.append(output[0, len(prompt_ids) :].tolist())
    return generated
