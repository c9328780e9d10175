"""Runs the default model in transformers' `generate`, as the reference for the engine's tokens."""

import asyncio
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from inference_server.engine.native.gumbel import gumbel, key, uniform_of_all
from inference_server.generation import Delta, GenerationRequest
from inference_server.precision import Precision
from inference_server.serving.catalog import CatalogEntry, read_catalog
from inference_server.serving.hosted_model import HostedModel
from inference_server.settings.models import DEFAULT_CATALOG
from inference_server.settings.server import Settings
from inference_server.text.prompt_encoder import PromptEncoder
from inference_server.weights.loader import load_model
from tests.support.engines import GREEDY, Recorder, collect, request

NUM_TOKENS = 64
KEPT_LOGITS = 256  # of each position
PROMPT_LENGTHS = [5, 8, 12, 17, 25, 36, 50, 70, 100, 140, 190, 256, 257, 330, 450, 600, 800, 1024, 1250, 1500]
# The first differing token may be this much below the reference's logit. transformers alone and batched differ as much.
LARGEST_GAP = {"float32": 0.0, "bfloat16": 0.25, "bitsandbytes-int8": 1.0}
# The scores (logit by temperature, plus noise) of two float32 runs' first differing tokens may differ by this much. With
# another number of rows, the default model's logits differ by 6e-6 (standard deviation) and by 4e-5 at most.
LARGEST_TIE = 5e-4
CORPUS = Path(__file__).parent / "corpus.txt"

TokenIds = list[int]


def default_entry(precision: Precision) -> CatalogEntry:
    """Return the default model's entry in a precision, with limits that fit every prompt here."""
    entry = read_catalog(DEFAULT_CATALOG)[2]
    return CatalogEntry(
        name="default",
        description=entry.description,
        weights=entry.weights,
        precision=precision,
        context_length=3072,
        sequence_length=2500,
        chat_template=None,
        stands_in=False,
    )


def prompts(encoder: PromptEncoder, lengths: list[int]) -> list[TokenIds]:
    """Return the token ids of pieces of the corpus, each from another place."""
    corpus = encoder.encode_text(CORPUS.read_text())
    starts = [(index * 97) % (len(corpus) - length) for index, length in enumerate(lengths)]
    return [corpus[start : start + length] for start, length in zip(starts, lengths, strict=True)]


@dataclass
class Reference:
    """Greedy tokens of `generate`, and the likeliest tokens at each position, the likeliest first.

    Attributes:
        token_ids: The reply.
        likeliest: Token ids, int64 of shape (num_tokens, KEPT_LOGITS).
        logits: Their logits, float32 of the same shape.
    """

    token_ids: TokenIds
    likeliest: torch.Tensor
    logits: torch.Tensor


def reference_model(precision: Precision) -> Any:
    """Load the default model with transformers' default attention."""
    weights = default_entry(precision).weights
    cpu = torch.device("cpu")
    return load_model(weights, precision, device=cpu, cache_dir=Settings().cache_dir, attention_name="sdpa").model


def generate(precision: Precision, prompts: list[TokenIds], num_tokens: int = NUM_TOKENS) -> list[Reference]:
    """Generate the reply to each prompt by itself."""
    model = reference_model(precision)
    references = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        output = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=num_tokens,
            eos_token_id=None,
            output_logits=True,
            return_dict_in_generate=True,
        )
        logits, likeliest = torch.cat(output.logits).float().topk(KEPT_LOGITS)
        references.append(Reference(output.sequences[0, len(prompt) :].tolist(), likeliest, logits))
    return references


@torch.inference_mode()
def tie_gap(model: Any, generation: GenerationRequest, one: TokenIds, other: TokenIds) -> float:
    """Return the difference of the scores of two replies' first differing tokens; infinity if one is not allowed.

    Scores are computed by the contract's definition in float64, over a sorted vocabulary, with the position's noise.
    """
    place = next(place for place, (ours, theirs) in enumerate(zip(one, other, strict=True)) if ours != theirs)
    prefix = [*generation.prompt_ids, *one[:place]]
    params = generation.sampling
    logits = model(torch.tensor([prefix]), logits_to_keep=1).logits[0, 0].double()
    if (bias := params.logit_bias) is not None:
        logits[list(bias.token_ids)] += torch.tensor(list(bias.values), dtype=torch.float64)
    logits /= params.temperature
    noise = gumbel(uniform_of_all([key(params.seed, len(prefix))], len(logits), logits.device))[0]
    likeliest = logits.argsort(descending=True)[: params.top_k]
    likeliest = likeliest[logits[likeliest] >= logits.max() + math.log(params.min_p)] if params.min_p else likeliest
    shares = logits[likeliest].softmax(dim=-1)
    allowed = likeliest[shares.cumsum(dim=-1) - shares < params.top_p] if params.top_p < 1.0 else likeliest
    pair = [one[place], other[place]]
    if not set(pair) <= set(allowed.tolist()):
        return math.inf
    first, second = (logits + noise)[pair].tolist()
    return abs(first - second)


def first_gap(reference: Reference, token_ids: TokenIds) -> float | None:
    """Return how many logits the engine's first differing token is below the reference's. None if all are equal.

    It is infinity if the engine's token is not among the KEPT_LOGITS likeliest.
    """
    assert len(token_ids) == len(reference.token_ids)
    for position, (ours, theirs) in enumerate(zip(token_ids, reference.token_ids, strict=True)):
        if ours != theirs:
            logits = reference.logits[position]
            found = logits[reference.likeliest[position] == ours]
            return float(logits[0] - found) if len(found) else math.inf
    return None


async def alone(model: HostedModel, prompts: list[TokenIds], num_tokens: int = NUM_TOKENS) -> list[TokenIds]:
    recorder = Recorder(model)
    for index, prompt in enumerate(prompts):
        await collect(model, _greedy(index, prompt, num_tokens))
    return _completions(recorder, prompts)


async def eight_at_a_time(model: HostedModel, prompts: list[TokenIds], num_tokens: int = NUM_TOKENS) -> list[TokenIds]:
    recorder = Recorder(model)
    for first in range(0, len(prompts), 8):
        group = range(first, min(first + 8, len(prompts)))
        await asyncio.gather(*(collect(model, _greedy(index, prompts[index], num_tokens)) for index in group))
    return _completions(recorder, prompts)


async def joining(model: HostedModel, prompts: list[TokenIds], num_tokens: int = NUM_TOKENS) -> list[TokenIds]:
    """Start each prompt after the one before it has sent some deltas: 1, 4, 7, 10, 1, …"""
    recorder = Recorder(model)

    async def run(index: int) -> None:
        follower: asyncio.Task[None] | None = None
        num_deltas = 0
        async with model.submit(_greedy(index, prompts[index], num_tokens)) as reply:
            async for event in reply:
                num_deltas += isinstance(event, Delta)
                if follower is None and num_deltas > (3 * index) % 12 and index + 1 < len(prompts):
                    follower = asyncio.create_task(run(index + 1))
        await (follower or asyncio.sleep(0))

    await run(0)
    return _completions(recorder, prompts)


MODES: dict[str, Callable[..., Awaitable[list[TokenIds]]]] = {
    "alone": alone,
    "eight at a time": eight_at_a_time,
    "joining": joining,
}


def _greedy(index: int, prompt: TokenIds, num_tokens: int):
    return request(prompt, request_id=str(index), sampling=GREEDY, max_tokens=num_tokens)


def _completions(recorder: Recorder, prompts: list[TokenIds]) -> list[TokenIds]:
    return [recorder.completion(str(index), len(prompt)) for index, prompt in enumerate(prompts)]
