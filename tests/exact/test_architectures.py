"""Greedy replies of small random models of every architecture in docs/architectures.md equal those of `generate`.

Prompts are computed in chunks, replies in a batch, and the longest prompt again with the help of the prefix cache.
"""

import pytest
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from inference_server.weights.architectures import reasons
from tests.exact.architectures import NUM_TOKENS, TIE, compare
from tests.support.text_architectures import SERVED


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
