"""Speculative decoding of whole engines on a CPU: tiny models with real passes, configured as in a catalog."""

import dataclasses
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

from inference_server.generation import SamplingParams
from inference_server.model.runner import NextToken, PromptPiece
from inference_server.weights.source import Weights
from tailrace_shared.config_errors import ConfigurationError
from tests.support.engines import Recorder, collect, entry, hosting, request
from tests.support.models import tiny_models

PROMPT = [259 + (3 * place) % 40 for place in range(100)]  # repeats itself
GREEDY = SamplingParams(seed=1, temperature=0.0, ignore_eos=True)
SAMPLED = SamplingParams(seed=3, temperature=0.9, ignore_eos=True, repetition_penalty=1.1)


async def tokens_of(entry, sampling):
    """Return the tokens of a reply, and the counts of draft tokens and accepted ones."""
    async with hosting(entry) as models:
        model = models[entry.name]
        recorder = Recorder(model)
        await collect(model, request(PROMPT, max_tokens=120, sampling=sampling))
        totals = model.engine.totals
        return recorder.completion("test", len(PROMPT)), totals.drafted_tokens, totals.accepted_tokens


async def test_drafts_are_on_by_default_and_change_no_reply(tiny_model):
    tiny = entry(tiny_model("llama-2"))
    drafted, num_drafted, _ = await tokens_of(tiny, GREEDY)
    plain, none, _ = await tokens_of(dataclasses.replace(tiny, speculation="off"), GREEDY)
    assert drafted == plain
    assert num_drafted > none == 0


@pytest.mark.parametrize("precision", ["float32", "float16", "bitsandbytes-int8", "int4"])
async def test_rows_of_one_sequence_have_the_logits_of_single_rows(tiny_model, precision):
    async with hosting(entry(tiny_model("llama-2-heads-of-32"), precision=precision)) as models:
        runner = models["tiny"].engine.runner
        blocks = [1, 2, 3, 4]
        runner.prefill([PromptPiece(blocks, 0, PROMPT[:60], wants_logits=True)])
        tokens = [NextToken(blocks, 60 + place, token) for place, token in enumerate(PROMPT[60:72])]
        together = runner.decode(tokens).clone()
        single = torch.cat([runner.decode([token]).clone() for token in tokens])
        is_program = "one program" in runner.path
    assert torch.equal(together, single) if is_program else torch.allclose(together, single, atol=1e-3, rtol=1e-3)


async def test_a_model_can_be_its_own_draft_model(tiny_model):
    folder = tiny_model("llama-2")
    tiny = entry(folder)
    expected, _, _ = await tokens_of(dataclasses.replace(tiny, speculation="off"), SAMPLED)
    drafted, num_drafted, num_accepted = await tokens_of(dataclasses.replace(tiny, draft=Weights(path=folder)), SAMPLED)
    assert drafted == expected
    assert num_accepted <= num_drafted


async def test_a_draft_model_rotates_by_the_frequencies_of_the_longest_sequence(tmp_path: Path):
    rope = {"rope_type": "dynamic", "factor": 8.0, "rope_theta": 10_000.0}
    config = LlamaConfig(**tiny_models.SIZES, max_position_embeddings=64, rope_parameters=rope)
    folder = tiny_models.write_config(tmp_path, config)
    async with hosting(dataclasses.replace(entry(folder), draft=Weights(path=folder))) as models:
        engine = models["tiny"].engine
        runners = [engine.runner, engine.drafting._draft_model._runner]
        frequencies = [runner.model.model.rotary_emb.inv_freq for runner in runners]
    assert torch.equal(*frequencies)


async def test_a_draft_model_with_another_tokenizer_is_refused(tiny_model, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(tiny_models, "_WORDS", "quite other words of another tokenizer " * 3)
    other = tiny_models.write_model(tmp_path / "other", "llama-2")
    wanted = dataclasses.replace(entry(tiny_model("llama-2")), draft=Weights(path=other))
    with pytest.raises(
        ConfigurationError, match="has another tokenizer than .* set draft to a model of the same family"
    ):
        async with hosting(wanted):
            pass
