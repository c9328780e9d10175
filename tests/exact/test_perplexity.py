"""The quality of quantized weights: perplexity of a fixed text through the engine's own forward pass."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from inference_server.attention.paged import PrefillBatch
from inference_server.attention.step_inputs import PromptTokens, Segment
from inference_server.serving.hosted_model import HostedModel
from inference_server.settings.server import Settings
from inference_server.weights.loader import silence_libraries
from tests.exact.reference import CORPUS, default_entry, reference_model
from tests.support.engines import hosting

CHUNK = 256
WINDOW = 1024

TokenIds = list[int]


@torch.inference_mode()
def perplexity(token_ids: TokenIds, logits: Callable[[TokenIds], Tensor]) -> float:
    """Return the perplexity over consecutive windows of the text, each with its own context.

    `logits` returns (len(window), vocab_size).
    """
    assert len(token_ids) >= 2000
    losses = []
    for first in range(0, len(token_ids), WINDOW):
        window = token_ids[first : first + WINDOW]
        targets = torch.tensor(window[1:])
        losses.append(torch.nn.functional.cross_entropy(logits(window)[:-1].float(), targets, reduction="sum"))
    num_predicted = len(token_ids) - len(losses)
    return math.exp(float(torch.stack(losses).sum()) / num_predicted)


def corpus(model: HostedModel) -> TokenIds:
    return model.prompts.encode_text(CORPUS.read_text())


def engine_logits(model: HostedModel) -> Callable[[TokenIds], Tensor]:
    runner = model.engine.runner
    block_ids = range(1, 1 + -(-WINDOW // runner.cache.block_size))

    def chunk_logits(window: TokenIds, start: int) -> Tensor:
        positions = list(range(start, min(start + CHUNK, len(window))))
        if runner._cpu_forward is not None and runner._cpu_forward.supports_prefill:
            segments = [Segment(block_ids, start, len(positions))]
            tokens = PromptTokens(window[start : positions[-1] + 1], positions, segments)
            outputs = runner._cpu_forward.prefill(tokens, list(range(len(positions))))
            return runner._head(outputs).float()
        chunk = torch.tensor([window[start : start + CHUNK]])
        columns = torch.arange(chunk.shape[1])
        segments = [Segment(block_ids, start, chunk.shape[1])]
        batch = PrefillBatch(runner.cache, runner.attention.prompts(runner.cache, segments))
        return runner._forward(chunk, start + columns[None], columns, batch)[0]

    return lambda window: torch.cat([chunk_logits(window, start) for start in range(0, len(window), CHUNK)])


async def measure(precision: str, **settings: bool) -> float:
    async with hosting(default_entry(precision), max_running_seqs=1, **settings) as models:
        model = models["default"]
        return perplexity(corpus(model), engine_logits(model))


@pytest.mark.exact
@pytest.mark.timeout(600)
async def test_int8_is_close_to_16_bits_and_better_than_bitsandbytes(report):
    async with hosting(default_entry("float16"), max_running_seqs=1) as models:
        token_ids = corpus(models["default"])
        sixteen_bits = perplexity(token_ids, engine_logits(models["default"]))
    int8 = await measure("bitsandbytes-int8")
    silence_libraries()
    model = reference_model("bitsandbytes-int8")
    own = perplexity(token_ids, lambda window: model(torch.tensor([window])).logits[0])
    for name, value in {"int8, weights alone": int8, "int8, bitsandbytes' own product": own}.items():
        report(f"{name}: perplexity {value:.3f}, {value / sixteen_bits - 1:+.2%} of {sixteen_bits:.3f}")
    assert Settings().int8_threshold == 0.0
    assert int8 <= 1.01 * sixteen_bits
    assert int8 < own


@pytest.mark.exact
@pytest.mark.timeout(600)
async def test_int4_of_a_q4_1_file_differs_only_by_the_rounded_head(report):
    float32 = await measure("float32")
    # Prompts are multiplied as integers, or in bfloat16, which is faster for many rows.
    for invariant in (True, False):
        int4 = await measure("int4", batch_invariant=invariant)
        report(f"int4, batch_invariant={invariant}: perplexity {int4:.3f}, {int4 / float32 - 1:+.3%} of {float32:.3f}")
        assert int4 == pytest.approx(float32, rel=0.003)
