"""Models with experts, from their folder to their first tokens: loading, log lines and refusals."""

import json
import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config

from inference_server.linears.experts import is_stack
from inference_server.linears.share import quantised_share
from inference_server.precision import Precision
from inference_server.weights.loader import load_model
from inference_server.weights.source import Weights
from tailrace_shared.config_errors import ConfigurationError
from tests.inference_server.weights.loading import load
from tests.support.engines import Recorder, collect, entry, hosting, request
from tests.support.models.expert_models import expert_model, round_weights, write_expert_model

PROMPT = [1, 300, 290, 311, 270, 333, 280, 301]
NUM_TOKENS = 12


@torch.inference_mode()
def shortfall(model, token_ids: list[int]) -> float:
    """Return the largest difference in logits between the greedy tokens and the given ones; 0 if all are greedy."""
    rows = model(torch.tensor([[*PROMPT, *token_ids]])).logits[0, len(PROMPT) - 1 : -1].float()
    return float((rows.amax(-1) - rows.gather(-1, torch.tensor(token_ids)[:, None]).squeeze(-1)).max())


@pytest.mark.parametrize("precision", ["bitsandbytes-int8", "int4"])
async def test_replies_are_those_of_the_dequantised_weights(precision: Precision, tmp_path, caplog):
    model = write_expert_model(tmp_path, "mixtral", dtype=torch.bfloat16).float()
    round_weights(model, precision)
    with caplog.at_level(logging.INFO):
        async with hosting(entry(tmp_path, precision=precision), cache_dir=tmp_path / "cache") as models:
            recorder = Recorder(models["tiny"])
            await collect(models["tiny"], request(PROMPT, request_id="one", max_tokens=NUM_TOKENS))
    assert shortfall(model, recorder.completion("one", len(PROMPT))) < 0.1
    assert "parameters in int" in caplog.text


def test_experts_keep_the_checkpoints_dtype_until_they_are_packed(tmp_path):
    write_expert_model(tmp_path / "model", "mixtral", dtype=torch.bfloat16)
    model = load(Weights(path=tmp_path / "model"), tmp_path, "int4").model
    stacks = [module for module in model.modules() if is_stack(module)]
    assert stacks and all(stack.down_proj.dtype is torch.bfloat16 for stack in stacks)
    assert model.model.norm.weight.dtype is model.model.layers[0].self_attn.q_proj.weight.dtype is torch.float32


def test_every_matrix_of_a_model_with_experts_counts_as_quantised_except_embedding_and_routers():
    model = expert_model("mixtral")
    share = quantised_share(model, "int4")
    assert share is not None and not share.warning
    routers = sum(p.numel() for name, p in model.named_parameters() if ".gate." in name or "norm" in name)
    assert share.total == sum(p.numel() for p in model.parameters())
    assert share.quantised == share.total - share.embeddings - routers
    assert quantised_share(model, "bfloat16") is None


def test_a_model_of_conv1d_layers_is_quantised():
    model = AutoModelForCausalLM.from_config(GPT2Config(n_embd=64, n_layer=2, n_head=4, vocab_size=100))
    share = quantised_share(model, "int4")
    assert share is not None and share.quantised == 2 * 12 * 64 * 64 + 100 * 64


def test_layers_that_no_form_quantises_are_named():
    class Odd(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.stacked = torch.nn.Parameter(torch.zeros(4, 64, 64))

    model = expert_model("mixtral")
    model.odd = Odd()
    share = quantised_share(model, "bitsandbytes-int8")
    assert share is not None and "Odd (16.38K parameters)" in share.warning


# The values of a code of MXFP4, without its sign.
MXFP4_VALUES = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])


def write_in_mxfp4(folder: Path) -> dict[str, torch.Tensor]:
    """Replace the experts of a gpt-oss model in `folder` with random ones in MXFP4. Returns them in bfloat16, by name."""
    generator = torch.Generator().manual_seed(5)
    tensors, kept, plain = load_file(folder / "model.safetensors"), {}, {}
    for name, tensor in tensors.items():
        if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            kept[name] = tensor
            continue
        experts, inputs, outputs = tensor.shape
        codes = torch.randint(0, 256, (experts, outputs, inputs // 32, 16), dtype=torch.uint8, generator=generator)
        scales = torch.randint(122, 126, (experts, outputs, inputs // 32), dtype=torch.uint8, generator=generator)
        kept |= {f"{name}_blocks": codes, f"{name}_scales": scales}
        nibbles = torch.stack([codes & 15, codes >> 4], -1).flatten(-2).int()
        values = MXFP4_VALUES[nibbles & 7] * (1 - 2 * (nibbles >> 3)) * 2.0 ** (scales[..., None].float() - 127)
        plain[name] = values.flatten(-2).transpose(1, 2).bfloat16()
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    plain_modules = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": plain_modules}
    (folder / "config.json").write_text(json.dumps(config))
    return plain


@pytest.mark.parametrize("precision", ["bfloat16", "bitsandbytes-int8"])
def test_experts_in_mxfp4_become_bfloat16(precision, tmp_path):
    folder = tmp_path / "model"
    write_expert_model(folder, "gpt-oss", dtype=torch.bfloat16)
    plain = write_in_mxfp4(folder)
    model = load(Weights(path=folder), tmp_path, precision, attention_name="eager").model
    found = dict(model.named_parameters())
    assert len(plain) == 4
    assert all(torch.equal(found[name], tensor) for name, tensor in plain.items())


def test_experts_in_mxfp4_are_refused_in_int8_on_a_gpu(tmp_path):
    write_expert_model(tmp_path, "gpt-oss", dtype=torch.bfloat16)
    write_in_mxfp4(tmp_path)
    with pytest.raises(ConfigurationError, match='experts in MXFP4.*set precision = "bfloat16"'):
        load_model(Weights(path=tmp_path), "bitsandbytes-int8", device=torch.device("cuda"), cache_dir=tmp_path)
