"""A runner on a CPU: its own description, and prompts in parts. tests/rehearsal has the runner on a GPU."""

import pytest
import torch

from inference_server.attention.cpu_backend import CpuAttention
from inference_server.attention.paged import NAME, register
from inference_server.model.runner import ModelRunner, NextToken, PromptPiece
from tests.inference_server.gpu.models import load


@pytest.fixture
def runner(tiny_model) -> ModelRunner:
    register()
    model = load(tiny_model("llama-2"))
    model.set_attn_implementation(NAME)
    runner = ModelRunner(model, num_blocks=8, max_len=64, max_seqs=4)
    runner.probe()
    return runner


def test_a_cpu_records_no_graphs_and_does_not_overlap(runner):
    runner.record_graphs()
    assert "modules of transformers" in runner.path
    assert not runner.supports_overlap
    assert isinstance(runner.attention, CpuAttention)
    assert (runner.sampled.shape, runner.sampled.dtype) == ((4,), torch.int64)


def test_decoding_continues_a_prompt_that_was_computed_in_parts(runner):
    prompt = [5 + place % 300 for place in range(40)]
    (whole,) = runner.prefill([PromptPiece([1, 2], 0, prompt, True)])
    runner.prefill([PromptPiece([3, 4], 0, prompt[:20], False)])
    runner.prefill([PromptPiece([3, 4], 20, prompt[20:39], False)])
    (last,) = runner.decode([NextToken([3, 4], 39, prompt[39])])
    torch.testing.assert_close(last, whole)
