"""Seeded replies of the default model in float32 do not depend on other requests in the batch.

The random numbers never depend on them. A product's last bits do depend on its number of rows. So replies are equal,
except where the first differing tokens tied within rounding by transformers' own logits (tie_gap). Such replies must be
as rare as ties are.
"""

import asyncio

import pytest

from inference_server.generation import LogitBias, SamplingParams
from inference_server.text.prompt_encoder import Turn
from tests.exact.reference import LARGEST_TIE, default_entry, prompts, reference_model, tie_gap
from tests.support.engines import Recorder, collect, hosting, request


def seeded(prompt, seed: int, max_tokens: int, **sampling):
    params = SamplingParams(seed=seed, temperature=0.9, ignore_eos=True, **sampling)
    return request(prompt, request_id=f"seed {seed}", sampling=params, max_tokens=max_tokens)


def check(pairs, most_that_differ: int, report) -> None:
    """Check the replies. `pairs` are (generation, token ids alone, token ids in a batch)."""
    differing = [pair for pair in pairs if pair[1] != pair[2]]
    model = reference_model("float32") if differing else None
    gaps = {generation.request_id: tie_gap(model, generation, *both) for generation, *both in differing}
    report(f"{len(pairs) - len(differing)} of {len(pairs)} replies equal in all tokens; ties among the others: {gaps}")
    assert len(differing) <= most_that_differ
    assert max(gaps.values(), default=0.0) <= LARGEST_TIE


@pytest.mark.exact
async def test_ten_seeds_give_the_same_text_alone_and_with_sixteen_others(report):
    pairs = []
    async with hosting(default_entry("float32")) as models:
        model = models["default"]
        recorder = Recorder(model)
        prompt = model.prompts.encode_chat([Turn("user", "Tell me a story about a river.")])
        others = prompts(model.prompts, [10 + 7 * n for n in range(12)])
        for seeds in (range(1, 6), range(6, 11)):
            ones = [seeded(prompt, seed, 48) for seed in seeds]
            alone = [await collect(model, one) for one in ones]
            tokens_alone = [recorder.completion(one.request_id, len(prompt)) for one in ones]
            # Five seeds and twelve others: each of the five is among sixteen.
            crowd = [seeded(other, 1000 * seeds[0] + n, 48) for n, other in enumerate(others)]
            among = await asyncio.gather(*(collect(model, each) for each in (*ones, *crowd)))
            for one, tokens, reply, reply_among in zip(ones, tokens_alone, alone, among[: len(ones)], strict=True):
                tokens_among = recorder.completion(one.request_id, len(prompt))
                assert reply_among.text == reply.text or tokens_among != tokens
                pairs.append((one, tokens, tokens_among))
    check(pairs, 1, report)


@pytest.mark.exact
async def test_32_streams_of_different_lengths_equal_their_solo_runs(report):
    pairs = []
    async with hosting(default_entry("float32"), max_running_seqs=32) as models:
        model = models["default"]
        recorder = Recorder(model)
        texts = prompts(model.prompts, [5 + 9 * n for n in range(32)])
        bias = LogitBias.of({260: 3.0, 284: -100.0, 28: -2.5})
        narrowed = [
            {
                "top_k": 40 if n % 3 == 0 else None,
                "top_p": 0.9 if n % 2 else 1.0,
                "min_p": 0.02 if n % 4 > 1 else 0.0,
                "logit_bias": bias if n % 5 == 4 else None,
            }
            for n in range(32)
        ]
        requests = [seeded(prompt, n, 8 + 2 * n, **narrowed[n]) for n, prompt in enumerate(texts)]
        together = await asyncio.gather(*(collect(model, one) for one in requests))
        for n, (one, reply) in enumerate(zip(requests, together, strict=True)):
            in_company = recorder.completion(one.request_id, len(texts[n]))
            await collect(model, one)
            pairs.append((one, recorder.completion(one.request_id, len(texts[n])), in_company))
            assert reply.completed.usage.completion_tokens == 8 + 2 * n
    check(pairs, 2, report)
