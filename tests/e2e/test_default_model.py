"""The default model itself, briefly: what tests/exact shows at length."""

import asyncio

import pytest

from inference_server.prompt import Turn
from inference_server.sequence import SamplingParams
from tests.engines import Recorder, collect, hosting, request
from tests.exact.reference import MODES, default_entry, first_gap, generate, prompts

SHORT_PROMPTS = [5, 17, 36, 70]


@pytest.fixture(scope="module")
def short_references():
    from transformers import AutoTokenizer

    from inference_server.config import Settings
    from inference_server.loader import local_folder
    from inference_server.prompt import PromptEncoder

    folder = local_folder(default_entry("float32").weights, Settings().cache_dir)
    return generate("float32", prompts(PromptEncoder(AutoTokenizer.from_pretrained(folder)), SHORT_PROMPTS))


@pytest.mark.parametrize("mode", MODES)
async def test_four_short_prompts_get_the_greedy_tokens_of_generate(mode, short_references):
    async with hosting(default_entry("float32"), max_running_seqs=8) as models:
        model = models["default"]
        ours = await MODES[mode](model, prompts(model.prompts, SHORT_PROMPTS))
    assert [first_gap(theirs, tokens) for theirs, tokens in zip(short_references, ours, strict=True)] == [None] * 4


async def test_two_seeds_give_the_same_text_alone_and_in_company():
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


@pytest.mark.parametrize("precision", ["float16", "bitsandbytes-int8"])
async def test_the_model_knows_the_capital_of_japan(precision):
    async with hosting(default_entry(precision), max_running_seqs=1) as models:
        model = models["default"]
        prompt = model.prompts.encode_chat([Turn("user", "What is the capital of Japan?")])
        recorder = Recorder(model)
        params = SamplingParams(seed=1, temperature=0.0)
        reply = await collect(model, request(prompt, sampling=params, max_tokens=20))
    assert reply.text == "The capital of Japan is Tokyo."
    assert recorder.completion("test", len(prompt))[-1] == 2  # <|im_end|>, which is no text
