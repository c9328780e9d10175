"""Forward passes as one kernel program and the same model run by its modules give bit-identical results."""

import logging
from collections.abc import Iterator

import pytest
import torch
from transformers import AutoModelForCausalLM

from inference_server.attention.paged import NAME, register
from inference_server.cpu.decoder_weights import extract_weights
from inference_server.cpu.fused_modules import FusedAttention, FusedMLP, FusedRMSNorm, fuse
from inference_server.kernels.isa.choice import obstacle
from inference_server.model.runner import ModelRunner, NextToken, PromptPiece
from inference_server.precision import cache_dtype

pytestmark = pytest.mark.skipif(obstacle() is not None, reason="this CPU has no kernels")
PRECISIONS = pytest.mark.parametrize("precision", ["bfloat16", "bitsandbytes-int8", "int4"])


@pytest.fixture(params=[1, 2])
def num_threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def model_of(folder, precision):
    register()
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation=NAME)
    fuse(model, precision, batch_invariant=False)
    return model


@pytest.fixture
def runners(tiny_model, num_threads):
    """Returns a function from a precision to two runners of one model: with kernel programs, and without."""

    def make(precision):
        model = model_of(tiny_model("llama-2-heads-of-32"), precision)
        pair = [
            ModelRunner(
                model, num_blocks=200, cache_dtype=cache_dtype(precision), use_kernel_programs=use_kernel_programs
            )
            for use_kernel_programs in (True, False)
        ]
        for runner in pair:
            runner.probe()
        assert [runner.supports_mixed_batch for runner in pair] == [True, False]
        return pair

    return make


def pieces(lengths, start=0):
    return [
        PromptPiece(range(1 + 9 * row, 10 + 9 * row), start, [(7 * row + k) % 400 for k in range(length)], row % 2 == 0)
        for row, length in enumerate(lengths)
    ]


@PRECISIONS
def test_prompts_have_the_same_logits(runners, precision):
    by_kernels, by_modules = runners(precision)
    for lengths in ([1], [40], [3, 70, 1, 31], [5] * 20):
        assert torch.equal(by_kernels.prefill(pieces(lengths)), by_modules.prefill(pieces(lengths)))
        assert torch.equal(by_kernels.prefill(pieces(lengths, start=70)), by_modules.prefill(pieces(lengths, start=70)))


@PRECISIONS
def test_decoded_tokens_have_the_same_logits(runners, precision):
    pair = runners(precision)
    lengths = [1 + 7 * row for row in range(20)]
    for count in (1, 3, 20, 9):
        found = []
        for runner in pair:
            runner.prefill(pieces(lengths))
            found.append(
                runner.decode(
                    [NextToken(range(1 + 9 * row, 10 + 9 * row), lengths[row], 30 + row) for row in range(count)]
                ).clone()
            )
        assert torch.equal(*found)


@pytest.mark.parametrize("precision", ["bfloat16", "bitsandbytes-int8"])
def test_decoded_tokens_and_prompts_in_one_pass_have_the_logits_of_two(runners, precision):
    by_kernels, by_modules = runners(precision)
    lengths = [1 + 7 * row for row in range(12)]
    for count, prompts in ((1, [40]), (12, [3, 70, 1]), (5, [33])):
        tokens = [NextToken(range(1 + 9 * row, 10 + 9 * row), lengths[row], 30 + row) for row in range(count)]
        late = [
            PromptPiece(range(120 + 9 * row, 129 + 9 * row), 0, [(5 * row + k) % 400 for k in range(length)], True)
            for row, length in enumerate(prompts)
        ]
        for runner in (by_kernels, by_modules):
            runner.prefill(pieces(lengths))
        both = by_kernels.mixed(tokens, late).clone()
        apart = torch.cat([by_modules.decode(tokens).clone(), by_modules.prefill(late)])
        assert torch.equal(both, apart)
        # What both passes have written is the same, too.
        after = [NextToken(token.block_ids, token.position + 1, 9) for token in tokens]
        after += [NextToken(piece.block_ids, len(piece.token_ids), 8) for piece in late]
        assert torch.equal(by_kernels.decode(after).clone(), by_modules.decode(after))


@pytest.mark.parametrize("architecture", ["qwen-3", "phi-3", "smollm-3", "granite"])
@pytest.mark.parametrize("precision", ["bfloat16", "bitsandbytes-int8"])
def test_other_architectures_have_the_logits_of_their_modules(tiny_model, architecture, precision):
    model = model_of(tiny_model(architecture), precision)
    blocks = [PromptPiece(range(1 + 3 * row, 4 + 3 * row), 0, list(range(20 + row, 60)), True) for row in range(3)]
    tokens = [NextToken(piece.block_ids, len(piece.token_ids), 9) for piece in blocks]
    found = []
    for use_kernel_programs in (True, False):
        runner = ModelRunner(
            model, num_blocks=20, cache_dtype=cache_dtype(precision), use_kernel_programs=use_kernel_programs
        )
        runner.probe()
        assert runner.supports_mixed_batch is use_kernel_programs
        found.append(torch.cat([runner.prefill(blocks).clone(), runner.decode(tokens).clone()]))
    if architecture == "granite" and precision == "bfloat16":  # its modules round the factors' products once more
        assert (found[0] - found[1]).abs().max() < 0.2 * found[1].std()
    else:
        assert torch.equal(*found)


@pytest.mark.parametrize("precision", ["bfloat16"])
def test_prompts_of_which_none_ends_may_share_a_pass(runners, precision):
    by_kernels, _ = runners(precision)
    piece = PromptPiece(range(1, 10), 0, list(range(40)), wants_logits=False)
    assert by_kernels.mixed([NextToken([20], 0, 3)], [piece]).shape[0] == 1


@pytest.mark.parametrize("precision", ["int4"])
def test_the_same_program_gives_the_same_bits_again(runners, precision):
    by_kernels, _ = runners(precision)
    tokens = [NextToken([row + 1], 0, row) for row in range(10)]
    first = by_kernels.decode(tokens).clone()
    by_kernels.decode(tokens[:2])
    assert torch.equal(by_kernels.decode(tokens), first)


def test_a_model_of_todays_transformers_is_fused_throughout(tiny_model):
    model = model_of(tiny_model("llama-2-heads-of-32"), "bfloat16")
    for layer in model.model.layers:
        assert type(layer.self_attn) is FusedAttention
        assert type(layer.mlp) is FusedMLP
        assert type(layer.input_layernorm) is type(layer.post_attention_layernorm) is FusedRMSNorm


@pytest.mark.parametrize(("architecture", "precision"), [("gemma-2", "bfloat16"), ("llama-2", "float32")])
def test_a_model_that_no_kernel_program_computes_is_refused(tiny_model, architecture, precision):
    model = AutoModelForCausalLM.from_pretrained(tiny_model(architecture), dtype=torch.float32)
    fuse(model, precision, batch_invariant=False)
    with pytest.raises(ValueError, match="its"):
        extract_weights(model)


def test_the_log_reports_why_kernels_are_missing_and_their_replacement(tiny_model, caplog):
    caplog.set_level(logging.INFO)
    ModelRunner(model_of(tiny_model("llama-2-heads-of-32"), "float32"), num_blocks=4)
    assert (
        "cannot run as one program of compiled kernels: its linear layers have no compiled kernel, because no kernel"
        " multiplies float32 weights" in caplog.text
    )
    assert "Its modules run one by one instead" in caplog.text
