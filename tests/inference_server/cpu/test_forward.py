"""Passes as one list of kernels against the same model run by its modules: the same bits."""

from collections.abc import Iterator

import pytest
import torch
from transformers import AutoModelForCausalLM

from inference_server.attention.paged import NAME, register
from inference_server.cpu.decoder_weights import decoder_of
from inference_server.cpu.fused_modules import FusedAttention, FusedMLP, FusedRMSNorm, fuse
from inference_server.kernels.amx import tile_config as tiles
from inference_server.model.runner import ModelRunner, NextToken, PromptPiece
from inference_server.precision import cache_dtype

pytestmark = pytest.mark.skipif(not tiles.are_usable(), reason="this CPU has no tile registers")

PRECISIONS = pytest.mark.parametrize("precision", ["bfloat16", "bitsandbytes-int8", "int4"])


@pytest.fixture(params=[1, 2], autouse=True)
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
def runners(tiny_model):
    """makes (with the list of kernels, without it) for a precision: two runners of one model."""

    def make(precision):
        model = model_of(tiny_model("llama-2-heads-of-32"), precision)
        pair = [ModelRunner(model, num_blocks=200, cache_dtype=cache_dtype(precision)) for _ in range(2)]
        for runner in pair:
            runner.probe()
        assert pair[0]._cpu_forward is not None and pair[0]._cpu_forward.has_prompts
        pair[1]._cpu_forward = None
        return pair

    return make


def pieces(lengths, start=0):
    return [
        PromptPiece(range(1 + 9 * row, 10 + 9 * row), start, [(7 * row + k) % 400 for k in range(length)], row % 2 == 0)
        for row, length in enumerate(lengths)
    ]


@PRECISIONS
def test_prompts_have_the_same_logits(runners, precision):
    listed, by_modules = runners(precision)
    for lengths in ([1], [40], [3, 70, 1, 31], [5] * 20):
        assert torch.equal(listed.prefill(pieces(lengths)), by_modules.prefill(pieces(lengths)))
        assert torch.equal(listed.prefill(pieces(lengths, start=70)), by_modules.prefill(pieces(lengths, start=70)))


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
    listed, by_modules = runners(precision)
    lengths = [1 + 7 * row for row in range(12)]
    for count, prompts in ((1, [40]), (12, [3, 70, 1]), (5, [33])):
        tokens = [NextToken(range(1 + 9 * row, 10 + 9 * row), lengths[row], 30 + row) for row in range(count)]
        late = [
            PromptPiece(range(120 + 9 * row, 129 + 9 * row), 0, [(5 * row + k) % 400 for k in range(length)], True)
            for row, length in enumerate(prompts)
        ]
        for runner in (listed, by_modules):
            runner.prefill(pieces(lengths))
        both = listed.mixed(tokens, late).clone()
        apart = torch.cat([by_modules.decode(tokens).clone(), by_modules.prefill(late)])
        assert torch.equal(both, apart)
        # What both passes have written is the same, too.
        after = [NextToken(token.block_ids, token.position + 1, 9) for token in tokens]
        after += [NextToken(piece.block_ids, len(piece.token_ids), 8) for piece in late]
        assert torch.equal(listed.decode(after).clone(), by_modules.decode(after))


def test_prompts_of_which_none_ends_may_share_a_pass(runners):
    listed, _ = runners("bfloat16")
    piece = PromptPiece(range(1, 10), 0, list(range(40)), wants_logits=False)
    assert listed.mixed([NextToken([20], 0, 3)], [piece]).shape[0] == 1


def test_the_same_list_gives_the_same_bits_again(runners):
    listed, _ = runners("int4")
    tokens = [NextToken([row + 1], 0, row) for row in range(10)]
    first = listed.decode(tokens).clone()
    listed.decode(tokens[:2])
    assert torch.equal(listed.decode(tokens), first)


def test_a_model_of_todays_transformers_is_fused_throughout(tiny_model):
    model = model_of(tiny_model("llama-2-heads-of-32"), "bfloat16")
    for layer in model.model.layers:
        assert type(layer.self_attn) is FusedAttention
        assert type(layer.mlp) is FusedMLP
        assert type(layer.input_layernorm) is type(layer.post_attention_layernorm) is FusedRMSNorm


@pytest.mark.parametrize(("architecture", "precision"), [("gemma-2", "bfloat16"), ("llama-2", "float32")])
def test_a_model_that_cannot_be_listed_is_refused(tiny_model, architecture, precision):
    model = AutoModelForCausalLM.from_pretrained(tiny_model(architecture), dtype=torch.float32)
    fuse(model, precision, batch_invariant=False)
    with pytest.raises(ValueError, match="its"):
        decoder_of(model)
