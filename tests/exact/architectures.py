"""Runs a small random model of an architecture through the engine and through transformers' `generate`."""

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from tests.support.engines import Recorder, collect, entry, hosting, request
from tests.support.models.text_architectures import small_config
from tests.support.models.tiny_models import VOCAB_SIZE, write_config

NUM_TOKENS = 16
PROMPT_LENGTHS = (5, 60, 150)  # a prompt of one chunk, and two of several chunks of 32 tokens
# Two logits that differ by less may change their order, because the engine sums in another order.
TIE = 1e-3

TokenIds = list[int]


@dataclass(frozen=True)
class Comparison:
    """The replies to the same prompts.

    Attributes:
        ours: The engine's replies, computed in one batch.
        again: Its reply to the longest prompt, sent again.
        cached_tokens: Tokens of that prompt that the prefix cache contained.
        gap: The largest difference in logits at a first differing token; 0 if all replies are those of `generate`.
    """

    ours: list[TokenIds]
    again: TokenIds
    cached_tokens: int
    gap: float


def prompts() -> list[TokenIds]:
    """Return the prompts' token ids."""
    generator = torch.Generator().manual_seed(7)
    return [torch.randint(3, VOCAB_SIZE, (n,), generator=generator).tolist() for n in PROMPT_LENGTHS]


async def compare(name: str, folder: Path) -> Comparison:
    """Write a model of the architecture `name` to `folder`, and compare the engine with `generate`."""
    write_config(folder, small_config(name))
    reference: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    limits = {"context_length": 256, "sequence_length": 64}
    settings = {"prefill_chunk_tokens": 32, "prefill_idle_tokens": 32, "max_running_seqs": 4}
    async with hosting(entry(folder, **limits), **settings) as models:
        model = models["tiny"]
        recorder = Recorder(model)
        names = [str(index) for index in range(len(PROMPT_LENGTHS))]
        generations = [
            request(prompt, request_id=each, max_tokens=NUM_TOKENS)
            for each, prompt in zip(names, prompts(), strict=True)
        ]
        await asyncio.gather(*(collect(model, generation) for generation in generations))
        ours = [recorder.completion(each, len(prompt)) for each, prompt in zip(names, prompts(), strict=True)]
        repeated = await collect(model, request(prompts()[-1], request_id="again", max_tokens=NUM_TOKENS))
        again = recorder.completion("again", PROMPT_LENGTHS[-1])
    assert repeated.completed is not None
    gaps = [_gap(reference, prompt, reply) for prompt, reply in zip(prompts(), ours, strict=True)]
    return Comparison(ours, again, repeated.completed.usage.cached_tokens, max(gaps))


@torch.inference_mode()
def _gap(reference: Any, prompt: TokenIds, reply: TokenIds) -> float:
    """Return the difference in logits at the first token that differs from `generate`'s; 0 if no token differs."""
    ids = torch.tensor([prompt])
    output = reference.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=NUM_TOKENS,
        eos_token_id=None,
        output_logits=True,
        return_dict_in_generate=True,
    )
    theirs = output.sequences[0, len(prompt) :].tolist()
    for place, pair in enumerate(zip(reply, theirs, strict=True)):
        if pair[0] != pair[1]:
            logits = output.logits[place][0]
            return float(logits[pair[1]] - logits[pair[0]])
    return 0.0
