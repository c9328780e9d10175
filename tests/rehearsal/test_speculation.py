"""Draft tokens on a simulated GPU: steps with them run between overlapped steps, and do not change replies."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.engines import entry
from tests.support.rehearsal.engines import SAMPLINGS, prompt, replies, serving
from tests.support.rehearsal.gpu import SimulatedGpu
from tests.support.rehearsal.patches import rehearsal

pytestmark = pytest.mark.rehearsal


@pytest.mark.parametrize("sampling", [{"temperature": 0.0}, {"temperature": 0.1}, SAMPLINGS["penalties and logprobs"]])
async def test_drafts_change_no_reply(sampling: dict[str, object], tiny_model: Callable[[str], Path]) -> None:
    plain = entry(tiny_model("llama-3"), precision="float16", context_length=256, sequence_length=128)
    prompts = [prompt(20) * 3]
    texts, drafted = {}, {}
    for speculation in ("off", "prompt-lookup"):
        with rehearsal(SimulatedGpu()):
            async with serving(dataclasses.replace(plain, speculation=speculation)) as model:
                found = await replies(model, prompts, 60, **sampling)
                texts[speculation] = [each.token_ids for each in found]
                drafted[speculation] = model.engine.totals.drafted_tokens
    assert texts["prompt-lookup"] == texts["off"]
    assert drafted["off"] == 0
    assert drafted["prompt-lookup"] > 0
