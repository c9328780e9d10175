"""Scaled rotary positions: replies far beyond the original window equal those of transformers with the same scaling.

transformers computes the frequencies of some kinds of scaling from the longest sequence of a call. The reference
therefore computes a whole window in one call, because the tokens after a reply change only the frequencies.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from json import dumps
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, Gemma3TextConfig, GPT2Config, LlamaConfig

from inference_server.attention.rope import RopeChoice, window
from inference_server.kernels.isa.choice import obstacle
from tailrace_shared.config_errors import ConfigurationError
from tests.support.engines import Recorder, collect, entry, hosting, request
from tests.support.models.tiny_models import SIZES, write_config
from tests.support.rehearsal.engines import replies, serving
from tests.support.rehearsal.gpu import SimulatedGpu
from tests.support.rehearsal.patches import rehearsal

ORIGINAL, WINDOW = 64, 256
NUM_TOKENS = 12
THETA = 10_000.0
# Rounding to bfloat16 causes a shortfall of about 1. With a wrong scaling, it is at least 11.
BFLOAT16_SHORTFALL = 3.0
SCALINGS: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": ORIGINAL},
    "llama3": {
        "rope_type": "llama3",
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": ORIGINAL,
    },
    "longrope": {
        "rope_type": "longrope",
        "factor": 4.0,
        "short_factor": [1.0] * 16,
        "long_factor": [1.0 + number / 4 for number in range(16)],
        "original_max_position_embeddings": ORIGINAL,
    },
}
SCALED = pytest.mark.parametrize("scaling", SCALINGS.values(), ids=SCALINGS)


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(259, 403, (n,), generator=generator).tolist() for n in (5, 60, 70, 200)]


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    """Returns a Llama for 64 tokens, with heads that every CPU kernel supports."""
    config = LlamaConfig(**{**SIZES, "hidden_size": 128}, max_position_embeddings=ORIGINAL)
    return write_config(tmp_path_factory.mktemp("plain"), config)


def scaled_model(folder: Path, scaling: Mapping[str, Any], dtype: torch.dtype) -> Any:
    """Return transformers' model with a scaling in its configuration, in float32 with weights rounded to `dtype`."""
    config = AutoConfig.from_pretrained(folder)
    is_dynamic = scaling["rope_type"] == "dynamic"  # its window is the original one in transformers' configurations
    config.max_position_embeddings = ORIGINAL if is_dynamic else WINDOW
    config.rope_parameters = {"rope_theta": THETA, **scaling}
    model = AutoModelForCausalLM.from_pretrained(folder, config=config, dtype=dtype, attn_implementation="eager")
    return model.float().eval()


@torch.inference_mode()
def shortfall(model: Any, prompt: list[int], reply: list[int]) -> float:
    """Return the largest difference between the logits of the most likely token and of the reply's token."""
    ids = [*prompt, *reply]
    whole = torch.tensor([ids + [5] * (WINDOW - len(ids))])
    logits = model(whole).logits[0, len(prompt) - 1 : len(ids) - 1]
    return float((logits.amax(-1) - logits.gather(-1, torch.tensor(reply)[:, None])[:, 0]).max())


def scaled_entry(folder: Path, scaling: Mapping[str, Any], precision: Any) -> Any:
    limits = {"context_length": WINDOW - 56, "sequence_length": 56}
    return replace(entry(folder, precision=precision, **limits), rope=scaling)


async def greedy(hosted: Any) -> list[list[int]]:
    async with hosting(hosted, prefill_chunk_tokens=64, prefill_idle_tokens=64, max_running_seqs=3) as models:
        model = models["tiny"]
        assert model.window == WINDOW
        recorder = Recorder(model)
        generations = [
            request(prompt, request_id=f"{index}", max_tokens=NUM_TOKENS) for index, prompt in enumerate(prompts())
        ]
        await asyncio.gather(*(collect(model, generation) for generation in generations))
        return [recorder.completion(f"{index}", len(prompt)) for index, prompt in enumerate(prompts())]


@SCALED
async def test_modules_scale_positions_as_the_catalog_says(plain, scaling):
    found = await greedy(scaled_entry(plain, scaling, "float32"))
    model = scaled_model(plain, scaling, torch.float32)
    assert max(shortfall(model, *pair) for pair in zip(prompts(), found, strict=True)) < 1e-3


@SCALED
@pytest.mark.skipif(obstacle() is not None, reason="this CPU has no kernels")
async def test_a_kernel_program_scales_positions_as_the_catalog_says(plain, scaling, monkeypatch, tmp_path):
    monkeypatch.setenv("TAILRACE_CACHE_DIR", str(tmp_path))
    model = scaled_model(plain, scaling, torch.bfloat16)
    for _ in range(2):  # packs the weights, then reads them
        found = await greedy(scaled_entry(plain, scaling, "bfloat16"))
        assert max(shortfall(model, *pair) for pair in zip(prompts(), found, strict=True)) < BFLOAT16_SHORTFALL


@SCALED
@pytest.mark.rehearsal
async def test_a_gpu_scales_positions_as_the_catalog_says(plain, scaling):
    with rehearsal(SimulatedGpu()):
        async with serving(scaled_entry(plain, scaling, "float16")) as model:
            assert "fused decoder layers" in model.engine.path
            found = await replies(model, prompts(), NUM_TOKENS, temperature=0.0)
    reference = scaled_model(plain, scaling, torch.float16)
    pairs = zip(prompts(), [reply.token_ids for reply in found], strict=True)
    assert max(shortfall(reference, *pair) for pair in pairs) < 0.1


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
async def test_the_scaling_of_the_configuration_reaches_its_whole_window(plain, kind, tmp_path):
    model = scaled_model(plain, SCALINGS[kind], torch.float32)
    model.save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((plain / name).read_bytes())
    found = await greedy(scaled_entry(tmp_path, {}, "float32"))
    assert max(shortfall(model, *pair) for pair in zip(prompts(), found, strict=True)) < 1e-3


async def test_a_short_window_keeps_the_frequencies_of_short_texts(plain):
    limits = {"context_length": 40, "sequence_length": 24}
    async with hosting(replace(entry(plain, **limits), rope=SCALINGS["dynamic"])) as models:
        recorder = Recorder(models["tiny"])
        await collect(models["tiny"], request(prompts()[0], request_id="0", max_tokens=NUM_TOKENS))
        found = recorder.completion("0", len(prompts()[0]))
    model = AutoModelForCausalLM.from_pretrained(plain, dtype=torch.float32, attn_implementation="eager")
    ids = torch.tensor([prompts()[0]])
    wanted = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=NUM_TOKENS, eos_token_id=None
    )
    assert found == wanted[0, len(prompts()[0]) :].tolist()


async def test_another_base_needs_no_scaling(plain):
    rope = {"rope_type": "default", "rope_theta": 500.0}
    async with hosting(replace(entry(plain), rope=rope)) as models:
        recorder = Recorder(models["tiny"])
        await collect(models["tiny"], request(prompts()[0], request_id="0", max_tokens=NUM_TOKENS))
        found = recorder.completion("0", len(prompts()[0]))
    assert shortfall(scaled_model(plain, rope, torch.float32), prompts()[0], found) < 1e-3


async def test_a_wrong_number_of_factors_is_named(plain):
    rope = {**SCALINGS["longrope"], "short_factor": [1.0]}
    with pytest.raises(ConfigurationError, match="short_factor needs one value for each of its 16 frequencies, not 1"):
        async with hosting(replace(entry(plain), rope=rope)):
            pass


async def test_two_scalings_of_the_same_weights_are_two_engines(plain, tmp_path, monkeypatch):
    monkeypatch.setenv("TAILRACE_CACHE_DIR", str(tmp_path))
    first = replace(scaled_entry(plain, SCALINGS["linear"], "bfloat16"), name="linear")
    second = replace(scaled_entry(plain, SCALINGS["yarn"], "bfloat16"), name="yarn")
    async with hosting(first, second) as models:
        assert models["linear"].engine is not models["yarn"].engine
    if obstacle() is None:
        assert len(list((tmp_path / "packed").iterdir())) == 2


async def test_positions_of_a_model_without_rotary_positions_cannot_be_scaled(tiny_gpt2):
    with pytest.raises(ConfigurationError, match=r"the model has no rotary positions: remove \[models.rope\]"):
        async with hosting(replace(entry(tiny_gpt2), rope=SCALINGS["linear"])):
            pass


@pytest.fixture
def tiny_gpt2(tmp_path) -> Path:
    config = GPT2Config(vocab_size=SIZES["vocab_size"], n_embd=64, n_layer=2, n_head=4, n_positions=128)
    return write_config(tmp_path, config)


def test_layers_that_differ_in_their_positions_cannot_be_scaled():
    config = Gemma3TextConfig(**SIZES, head_dim=16)
    with pytest.raises(ValueError, match="layers have different rotary positions"):
        RopeChoice('{"factor": 2.0, "rope_type": "linear"}').apply(config)


@pytest.mark.parametrize(
    ("scaling", "wanted"), [*((scaling, WINDOW) for scaling in SCALINGS.values()), ({"rope_type": "default"}, ORIGINAL)]
)
def test_a_window_is_the_original_one_times_the_factor(scaling, wanted):
    config = LlamaConfig(**{**SIZES, "hidden_size": 128}, max_position_embeddings=ORIGINAL)
    RopeChoice(dumps(scaling)).apply(config)
    assert window(config) == wanted


def test_a_packed_model_of_another_scaling_is_another_file(plain):
    config = {"max_position_embeddings": ORIGINAL}
    choices = [RopeChoice(), RopeChoice("", 500), *(RopeChoice(dumps(each), WINDOW) for each in SCALINGS.values())]
    names = [choice.variant(config) for choice in choices]
    assert names[:2] == ["", ""]
    assert len(set(names)) == 1 + len(SCALINGS)
    longrope = {**config, "rope_scaling": {"type": "longrope", "original_max_position_embeddings": 32}}
    assert RopeChoice("", 20).variant(longrope) == ""
    assert RopeChoice("", 40).variant(longrope) != ""


@pytest.mark.parametrize("name", ["su", "yarn"])
def test_the_older_names_of_longrope_are_recognised(name):
    rope = {"type": name, "short_factor": [1.0] * 16, "long_factor": [2.0] * 16}
    config = {"max_position_embeddings": WINDOW, "original_max_position_embeddings": ORIGINAL, "rope_scaling": rope}
    assert RopeChoice("", ORIGINAL).variant(config) == ""
    assert RopeChoice("", WINDOW).variant(config) != ""
