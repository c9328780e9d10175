"""The engine against transformers' own `generate`, on tiny models of several architectures."""

import asyncio

import pytest
import torch
from transformers import AutoModelForCausalLM, MambaConfig

from tailrace_shared.config_errors import ConfigurationError
from tests.exact.architectures import TIE, compare
from tests.support.engines import Recorder, collect, entry, hosting, request
from tests.support.models.expert_models import write_expert_model
from tests.support.models.tiny_models import ARCHITECTURES, VOCAB_SIZE, sentencepiece_tokenizer

NUM_TOKENS = 24
# tests/exact compares them, and tests/inference_server/cpu their kernel programs.
IN_THE_TABLE = ("granite", "phi-3", "smollm-3")
MAMBA = MambaConfig(vocab_size=VOCAB_SIZE, hidden_size=64, num_hidden_layers=2)


def prompts() -> list[list[int]]:
    """Returns prompts of 1 to 150 tokens; the longest exceed every sliding window and a prefill chunk."""
    generator = torch.Generator().manual_seed(7)
    return [torch.randint(3, VOCAB_SIZE, (n,), generator=generator).tolist() for n in (1, 5, 23, 24, 25, 60, 150)]


def generate(folder, prompt: list[int]) -> list[int]:
    """Greedy tokens of transformers' eager attention."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    ids = torch.tensor([prompt])
    output = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=NUM_TOKENS, eos_token_id=None
    )
    return output[0, len(prompt) :].tolist()


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "gpt-oss"])
async def test_greedy_tokens_equal_those_of_generate(architecture, tiny_model, tmp_path):
    if architecture == "gpt-oss":
        folder = tmp_path
        write_expert_model(folder, architecture)
    else:
        folder = tiny_model(architecture)
    async with hosting(entry(folder), prefill_chunk_tokens=64, max_running_seqs=4) as models:
        model = models["tiny"]
        recorder = Recorder(model)
        await asyncio.gather(
            *(
                collect(model, request(prompt, request_id=str(index), max_tokens=NUM_TOKENS))
                for index, prompt in enumerate(prompts())
            )
        )
        for index, prompt in enumerate(prompts()):
            assert recorder.completion(str(index), len(prompt)) == generate(folder, prompt), f"prompt {index}"


async def test_a_model_with_unsupported_attention_is_refused_by_name(tmp_path):
    AutoModelForCausalLM.from_config(MAMBA).save_pretrained(tmp_path)
    sentencepiece_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ConfigurationError, match="tiny .* cannot be served: "):
        async with hosting(entry(tmp_path)):
            pass


# One architecture for each special property: rotation of a part of the head, layers that do not forward arguments,
# latent attention, learned positions, parallel attention and MLP.
@pytest.mark.parametrize("name", ["stablelm", "nemotron", "deepseek_v3", "gpt2", "gpt_neox"])
async def test_an_architecture_of_the_table_has_the_replies_of_generate(name, tmp_path):
    found = await compare(name, tmp_path)
    assert found.gap <= TIE
    assert found.again == found.ours[-1]
