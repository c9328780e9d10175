"""With TAILRACE_BATCH_INVARIANT the default model's logits are bit-identical alone, with 7 and with 31 others."""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch

from inference_server.generation import SamplingParams
from inference_server.precision import Precision
from tests.exact.reference import default_entry, prompts
from tests.support.engines import LogitsRecorder, collect, hosting, request

NUM_TOKENS = 8
NUM_PROMPTS = 20


@pytest.fixture
def set_threads() -> Iterator[Callable[[int], None]]:
    """Return the function that sets torch's number of threads, which is restored at the end."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.exact
@pytest.mark.parametrize("precision", ["bitsandbytes-int8", "int4", "bfloat16"])
async def test_logits_do_not_depend_on_the_batch(precision: Precision):
    settings = {"batch_invariant": True, "max_running_seqs": 32, "prefix_cache": "off"}
    recorder = LogitsRecorder()
    async with hosting(default_entry(precision), builder=recorder, **settings) as models:
        model = models["default"]
        texts = prompts(model.prompts, [5 + 11 * n for n in range(32)])

        async def together(first: int, count: int) -> list[list[bytes]]:
            """Return the logits of the prompts from `first` on, all in one batch."""
            asked = [request(ids, request_id=str(n), max_tokens=NUM_TOKENS) for n, ids in enumerate(texts)]
            await asyncio.gather(*(collect(model, one) for one in asked[first : first + count]))
            return [recorder.take(str(n)) for n in range(first, first + count)]

        alone = [rows for n in range(NUM_PROMPTS) for rows in await together(n, 1)]
        among_7 = [rows for first in range(0, 24, 8) for rows in await together(first, 8)]
        among_31 = await together(0, 32)
        for n in range(NUM_PROMPTS):
            assert among_7[n] == alone[n], f"prompt {n} among 7 others"
            assert among_31[n] == alone[n], f"prompt {n} among 31 others"


@pytest.mark.exact
@pytest.mark.parametrize("precision", ["bitsandbytes-int8", "int4", "bfloat16", "float32"])
async def test_deterministic_replies_depend_neither_on_threads_nor_on_draft_tokens_nor_on_the_batch(
    precision: Precision, set_threads
):
    """With the default model, log probabilities included. float32 has no compiled kernels."""
    sampling = SamplingParams(seed=1, top_p=0.9, frequency_penalty=0.2, logprobs=3)
    options = {"sampling": sampling, "max_tokens": 16, "joins_deltas": False}
    replies = []
    for threads, speculation in ((1, "off"), (2, "prompt-lookup"), (3, "prompt-lookup")):
        set_threads(threads)
        entry = replace(default_entry(precision), speculation=speculation)
        async with hosting(entry, deterministic=True, max_running_seqs=8) as models:
            model = models["default"]
            texts = prompts(model.prompts, [5, 20, 64, 65, 130, 33, 300])
            asked = [request(ids, request_id=str(n), **options) for n, ids in enumerate(texts)]
            replies += [
                [(await collect(model, one)).deltas for one in asked],
                [reply.deltas for reply in await asyncio.gather(*(collect(model, one) for one in asked))],
            ]
    assert all(reply == replies[0] for reply in replies)
