"""Greedy replies of small random models of every architecture in docs/architectures.md equal those of `generate`.

Prompts are computed in chunks, and replies in a batch. The longest prompt is then computed again with the prefix cache.
"""

from dataclasses import replace

import pytest
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from inference_server.weights.architectures import reasons
from tests.exact.architectures import NUM_TOKENS, TIE, compare
from tests.support.engines import collect, entry, hosting, request
from tests.support.models.text_architectures import SERVED


@pytest.mark.exact
@pytest.mark.parametrize("name", SERVED)
async def test_replies_are_those_of_generate(name, tmp_path):
    found = await compare(name, tmp_path)
    assert found.gap <= TIE
    assert [len(reply) for reply in found.ours] == [NUM_TOKENS] * len(found.ours)
    assert len({tuple(reply) for reply in found.ours}) == len(found.ours)
    assert found.cached_tokens >= 128
    assert found.again == found.ours[-1]


@pytest.mark.exact
def test_the_table_names_most_architectures_of_transformers(report):
    names = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    missing = sorted(names - set(SERVED) - set(reasons()))
    report(f"{len(SERVED)} served, {len(names & set(reasons()))} refused, not in the table: {', '.join(missing)}")
    assert len(SERVED) >= 35


@pytest.mark.exact
async def test_a_llama_2_with_a_scaled_window_serves_the_announced_lengths(tiny_model):
    limits = {"context_length": 3072, "sequence_length": 2500}
    scaled = replace(entry(tiny_model("llama-2"), **limits), rope={"rope_type": "linear", "factor": 1.5})
    async with hosting(scaled) as models:
        assert models["tiny"].window == 3072 + 2500
        prompt = [3 + place % 400 for place in range(3072)]
        reply = await collect(models["tiny"], request(prompt, max_tokens=2500))
    assert reply.completed.usage.completion_tokens == 2500
