"""Seeded replies of the default model in float32 do not depend on who else is in the batch."""

import asyncio

import pytest

from inference_server.prompt import Turn
from inference_server.sequence import SamplingParams
from tests.engines import Recorder, collect, hosting, request
from tests.exact.reference import default_entry, prompts


def seeded(prompt, seed: int, max_tokens: int, **sampling):
    params = SamplingParams(seed=seed, temperature=0.9, ignore_eos=True, **sampling)
    return request(prompt, request_id=f"seed {seed}", sampling=params, max_tokens=max_tokens)


@pytest.mark.exact
async def test_ten_seeds_give_the_same_text_alone_and_among_sixteen_others():
    async with hosting(default_entry("float32")) as models:
        model = models["default"]
        prompt = model.prompts.encode_chat([Turn("user", "Tell me a story about a river.")])
        others = prompts(model.prompts, [10 + 7 * n for n in range(16)])
        for seed in range(1, 11):
            alone = await collect(model, seeded(prompt, seed, 48))
            crowd = [seeded(other, 1000 * seed + n, 48) for n, other in enumerate(others)]
            among, *_ = await asyncio.gather(*(collect(model, one) for one in (seeded(prompt, seed, 48), *crowd)))
            assert among.text == alone.text, f"seed {seed}"


@pytest.mark.exact
async def test_32_streams_of_different_lengths_each_equal_their_solo_run():
    async with hosting(default_entry("float32"), max_running_seqs=32) as models:
        model = models["default"]
        recorder = Recorder(model)
        texts = prompts(model.prompts, [5 + 9 * n for n in range(32)])
        requests = [
            seeded(prompt, n, 8 + 2 * n, top_k=40 if n % 3 == 0 else None, top_p=0.9 if n % 2 else 1.0)
            for n, prompt in enumerate(texts)
        ]
        together = await asyncio.gather(*(collect(model, one) for one in requests))
        for n, (one, reply) in enumerate(zip(requests, together, strict=True)):
            in_company = recorder.completion(f"seed {n}", len(texts[n]))
            await collect(model, one)
            assert recorder.completion(f"seed {n}", len(texts[n])) == in_company, f"stream {n}"
            assert reply.completed.usage.completion_tokens == 8 + 2 * n
