"""A short version of tests/exact on the default model."""

import asyncio

import pytest
import torch

from inference_server.generation import SamplingParams
from inference_server.precision import resolve_precision
from inference_server.text.prompt_encoder import Turn
from tests.exact.reference import LARGEST_GAP, MODES, default_entry, first_gap, generate, prompts
from tests.support.engines import Recorder, collect, hosting, request

SHORT_PROMPTS = [5, 70]
NUM_TOKENS = 24
# In float32 nothing may differ. In the others the first differing token must have been nearly as likely.
CASES = [("float32", "joining"), ("float16", "eight at a time")]


@pytest.mark.parametrize(("precision", "mode"), CASES)
async def test_short_prompts_get_the_greedy_tokens_of_generate(precision, mode):
    async with hosting(default_entry(precision), max_running_seqs=8) as models:
        model = models["default"]
        texts = prompts(model.prompts, SHORT_PROMPTS)
        ours = await MODES[mode](model, texts, NUM_TOKENS)
    reference = generate(precision, texts, NUM_TOKENS)
    gaps = [first_gap(theirs, tokens) for theirs, tokens in zip(reference, ours, strict=True)]
    in_force = resolve_precision(precision, torch.device("cpu"))
    assert max(0.0 if gap is None else max(gap, 1e-9) for gap in gaps) <= LARGEST_GAP[in_force]


async def test_two_seeds_give_the_same_text_alone_and_in_a_batch():
    async with hosting(default_entry("float32"), max_running_seqs=8) as models:
        model = models["default"]
        prompt = model.prompts.encode_chat([Turn("user", "Tell me a story about a river.")])

        def seeded(ids, seed):
            params = SamplingParams(seed=seed, temperature=0.9, ignore_eos=True)
            return request(ids, sampling=params, max_tokens=24)

        for seed in (1, 2):
            alone = await collect(model, seeded(prompt, seed))
            crowd = [seeded(ids, seed + 10) for ids in prompts(model.prompts, [10, 40, 80])]
            among, *_ = await asyncio.gather(*(collect(model, one) for one in (seeded(prompt, seed), *crowd)))
            assert among.text == alone.text


async def test_the_model_knows_the_capital_of_japan_in_8_bits():
    async with hosting(default_entry("bitsandbytes-int8"), max_running_seqs=1) as models:
        model = models["default"]
        prompt = model.prompts.encode_chat([Turn("user", "What is the capital of Japan?")])
        recorder = Recorder(model)
        params = SamplingParams(seed=1, temperature=0.0)
        reply = await collect(model, request(prompt, sampling=params, max_tokens=20))
    assert reply.text == "The capital of Japan is Tokyo."
    assert recorder.completion("test", len(prompt))[-1] == 2  # <|im_end|>, which has no text
