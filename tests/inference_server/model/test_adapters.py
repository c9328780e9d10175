"""Passes with LoRA adapters: each row of a batch has the logits of a model with its adapter merged into the weights."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from inference_server.attention.paged import NAME, register
from inference_server.cpu.fused_modules import fuse
from inference_server.errors import UnsupportedModel
from inference_server.kernels.isa.choice import obstacle
from inference_server.lora.adapter import read_adapter
from inference_server.model.runner import ModelRunner, NextToken, PromptPiece
from inference_server.precision import cache_dtype
from tests.support.models.adapters import ALL, linear_shapes, merge, write_adapter

PROMPTS = [[(11 * row + 7 * k) % 400 for k in range(length)] for row, length in enumerate((5, 40, 33, 1))]
ROWS = [0, 1, 2, 3]  # the adapter of each prompt
BLOCKS = [range(1 + 9 * row, 10 + 9 * row) for row in ROWS]
NEXT = 9
PIECES = [PromptPiece(BLOCKS[row], 0, PROMPTS[row], True, ROWS[row]) for row in ROWS]
TOKENS = [NextToken(BLOCKS[row], len(PROMPTS[row]), NEXT, ROWS[row]) for row in ROWS]


def adapters_of(model_folder: Path, folder: Path) -> list[Path]:
    shapes = linear_shapes(AutoConfig.from_pretrained(model_folder))
    return [
        write_adapter(folder / "all", shapes, rank=8, seed=1, size=0.2),
        write_adapter(folder / "qv", shapes, rank=5, targets=("q_proj", "v_proj"), seed=2, size=0.2),
        write_adapter(folder / "mlp", shapes, rank=16, targets=("up_proj", "down_proj"), seed=3, size=0.2),
    ]


def load(folder: Path, dtype: torch.dtype = torch.float32, attention: str = NAME):
    register()
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation=attention).eval()


@torch.no_grad()
def merged_logits(model_folder: Path, folders: list[Path]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the logits after each prompt, and those after one more token, of models with merged weights."""
    found = []
    for row, prompt in zip(ROWS, PROMPTS, strict=True):
        model = load(model_folder, attention="eager")
        if row:
            merge(model, folders[row - 1])
        found.append([model(torch.tensor([ids])).logits[0, -1] for ids in (prompt, [*prompt, NEXT])])
    first, second = zip(*found, strict=True)
    return torch.stack(first), torch.stack(second)


def runner(model, folders: list[Path], **options: object) -> ModelRunner:
    made = ModelRunner(model, num_blocks=200, adapters=[read_adapter(folder) for folder in folders], **options)
    made.probe()
    return made


def test_modules_have_the_logits_of_merged_weights(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    model_folder = tiny_model("llama-3")
    folders = adapters_of(model_folder, tmp_path)
    adapted = runner(load(model_folder), folders)
    for found, wanted in zip(
        (adapted.prefill(PIECES), adapted.decode(TOKENS)), merged_logits(model_folder, folders), strict=True
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.skipif(obstacle() is not None, reason="this CPU has no kernels")
@pytest.mark.parametrize("precision", ["bfloat16", "bitsandbytes-int8", "int4"])
def test_kernel_programs_have_the_logits_of_modules(
    precision, tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    model_folder = tiny_model("llama-2-heads-of-32")
    folders = adapters_of(model_folder, tmp_path)
    pair = []
    for use_kernel_programs in (True, False):
        model = load(model_folder, torch.bfloat16 if precision == "bfloat16" else torch.float32)
        fuse(model, precision, batch_invariant=False)
        options = {"cache_dtype": cache_dtype(precision), "use_kernel_programs": use_kernel_programs}
        pair.append(runner(model, folders, **options))
    by_kernels, by_modules = pair
    assert [each.supports_mixed_batch for each in pair] == [True, False]
    for call in (lambda each: each.prefill(PIECES), lambda each: each.decode(TOKENS)):
        found, wanted = (call(each).clone() for each in pair)
        torch.testing.assert_close(found, wanted, rtol=0.05, atol=0.05 * float(wanted.abs().max()))
    # A row's result does not depend on the adapters of the other rows, and a pass may have decoded tokens and prompts.
    decoded = by_kernels.decode(TOKENS).clone()
    for row, token in enumerate(TOKENS):
        assert torch.equal(by_kernels.decode([token])[0], decoded[row])
    late = PromptPiece(range(100, 110), 0, PROMPTS[2], True, 2)
    alone = by_kernels.prefill([late]).clone()
    mixed = by_kernels.mixed(TOKENS, [late])
    assert torch.equal(mixed, torch.cat([decoded, alone]))


def test_decoding_is_batch_invariant_by_modules(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    model_folder = tiny_model("llama-3")
    adapted = runner(load(model_folder), adapters_of(model_folder, tmp_path), invariant_rows=8)
    adapted.prefill(PIECES)
    together = adapted.decode(TOKENS).clone()
    for row, token in enumerate(TOKENS):
        assert torch.equal(adapted.decode([token])[0], together[row])


def test_an_adapter_of_another_model_is_refused(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    shapes = {"model.layers.0.self_attn.q_proj": (8, 8), "lm_head": (8, 8)}
    for targets, words in ((ALL, "belongs to another model"), (("lm_head",), "adapts lm_head")):
        folder = write_adapter(tmp_path / targets[0], shapes, targets=targets)
        with pytest.raises(UnsupportedModel, match=words):
            runner(load(tiny_model("llama-3")), [folder])
