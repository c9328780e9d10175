"""A whole decoder by Triton kernels and by torch's operations: the logits of prompts and of decoded tokens agree."""

import pytest
import torch

from inference_server.attention.step_inputs import DecodeTokens, Segment
from tests.inference_server.gpu.kernels.conftest import VARIABLE
from tests.inference_server.gpu.models import GpuModel, load, quantize

pytest.importorskip("inference_server.gpu.kernels.launchers")

PROMPTS = [[(7 * number + 3 * place) % 390 + 5 for place in range(length)] for number, length in enumerate((1, 33))]
BLOCKS = [range(1, 7), range(7, 13)]


def logits(folder, *, is_int8):
    """Return the logits of a prefill pass, a decode pass and a mixed pass in float16."""
    loaded = load(folder)
    if is_int8:
        quantize(loaded, dequantized=False)
    model = GpuModel(loaded.half(), num_layers=1)
    segments = [Segment(blocks, 0, len(prompt)) for blocks, prompt in zip(BLOCKS, PROMPTS, strict=True)]
    lengths = [len(prompt) for prompt in PROMPTS]
    first = model.prefill(segments, PROMPTS)
    second = model.decode([7, 8], lengths, BLOCKS)
    tokens = DecodeTokens([4, 5], [length + 1 for length in lengths], BLOCKS)
    third = model.mixed(tokens, [Segment([13], 0, 3)], [PROMPTS[1][:3]])
    return torch.cat([first.float(), second, third.float()])


@pytest.mark.parametrize(
    ("architecture", "is_int8"), [("mistral", False), ("qwen-3", True)], ids=["windows", "int8 and norms of heads"]
)
def test_logits_agree(architecture, is_int8, tiny_model, monkeypatch):
    folder = tiny_model(architecture)
    by_kernels = logits(folder, is_int8=is_int8)
    monkeypatch.delenv(VARIABLE)
    by_torch = logits(folder, is_int8=is_int8)
    torch.testing.assert_close(by_kernels, by_torch, rtol=0, atol=0.01 * float(by_torch.abs().max()))
