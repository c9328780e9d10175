"""What int8 costs in quality: perplexity of a fixed text, through bitsandbytes' own product, against 16 bits."""

import math

import pytest
import torch

from inference_server.attention import PrefillBatch, Segment
from inference_server.config import Settings
from inference_server.hosting import HostedModel
from tests.engines import hosting
from tests.exact.reference import CORPUS, default_entry

CHUNK = 256
WINDOW = 1024


def perplexity(model: HostedModel) -> float:
    """Over consecutive windows of the corpus, each with its own context, through the engine's own forward pass."""
    token_ids = model.prompts.encode_text(CORPUS.read_text())
    assert len(token_ids) >= 2000
    losses = []
    for first in range(0, len(token_ids), WINDOW):
        window = token_ids[first : first + WINDOW]
        logits = torch.cat([chunk_logits(model, window, start) for start in range(0, len(window), CHUNK)])
        losses.append(torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(window[1:]), reduction="sum"))
    num_predicted = len(token_ids) - len(losses)
    return math.exp(float(torch.stack(losses).sum()) / num_predicted)


@torch.inference_mode()
def chunk_logits(model: HostedModel, window: list[int], start: int) -> torch.Tensor:
    runner = model.engine.runner
    chunk = window[start : start + CHUNK]
    batch = PrefillBatch(runner.cache, [Segment(0, start, len(chunk))])
    positions = list(range(start, start + len(chunk)))
    return runner._forward([chunk], [positions], list(range(len(chunk))), batch)[0]


async def measure(precision: str, **settings: float) -> float:
    async with hosting(default_entry(precision), max_running_seqs=1, **settings) as models:
        return perplexity(models["default"])


@pytest.mark.exact
async def test_int8_perplexity_is_within_five_percent_of_16_bits():
    sixteen_bits = await measure("float16")
    int8 = {threshold: await measure("bitsandbytes-int8", int8_threshold=threshold) for threshold in (0.0, 6.0)}
    for threshold, value in int8.items():
        print(
            f"\nint8, threshold {threshold}: perplexity {value:.3f}, {value / sixteen_bits - 1:+.2%} of {sixteen_bits:.3f}"
        )
    assert Settings().int8_threshold == 0.0
    assert int8[0.0] <= 1.05 * sixteen_bits
