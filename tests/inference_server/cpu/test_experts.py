"""Packed experts compared with transformers' experts, and the guarantees about rows, memory and threads."""

from functools import partial
from typing import Any

import pytest
import torch

from inference_server.attention import paged
from inference_server.cpu.experts import PackedExperts, pack_experts
from inference_server.cpu.fused_modules import fuse
from inference_server.cpu.linear.backends import BACKENDS
from inference_server.cpu.linear.kernel_linear import KernelLinear
from inference_server.cpu.linear.pack import pack
from inference_server.cpu.linear.panels import PanelBackend
from inference_server.cpu.linear.torch_backend import TorchBackend
from inference_server.kernels.isa import choice
from inference_server.model.runner import ModelRunner, NextToken, PromptPiece
from inference_server.precision import Precision, activation_dtype
from inference_server.weights.prepare import memory_bytes
from tests.support.kernels.linears import assert_close
from tests.support.models.expert_models import EXPERT_MODELS, expert_model, round_weights

NEEDS_KERNELS = pytest.mark.skipif(choice.obstacle() is not None, reason="this CPU has no kernels")
TORCH = (TorchBackend(),)
BACKENDS_OF = {isa.name: (PanelBackend(isa), *TORCH) for isa in choice.available()} | {"torch": TORCH}
PROMPT = [1, 300, 290, 311, 270, 333, 280, 301]


def server_logits(model: Any, precision: str, backends: Any = BACKENDS) -> torch.Tensor:
    """Pack a model, and return the logits of the prompt's last token, then those of one more token."""
    paged.register()
    model.set_attn_implementation(paged.NAME)
    fuse(model, precision, batch_invariant=False, backends=backends)
    runner = ModelRunner(model, num_blocks=4)
    first = runner.prefill([PromptPiece([1], 0, PROMPT[:-1], wants_logits=True)])
    return torch.cat([first.clone(), runner.decode([NextToken([1], len(PROMPT) - 1, PROMPT[-1])])])


@torch.inference_mode()
def transformers_logits(model: Any) -> torch.Tensor:
    return model(torch.tensor([PROMPT])).logits[0, -2:].float()


@pytest.mark.parametrize("precision", ["float32", "bitsandbytes-int8"])
@pytest.mark.parametrize("name", EXPERT_MODELS)
def test_logits_are_those_of_transformers_with_the_same_rounded_weights(name: str, precision: str) -> None:
    reference = expert_model(name)
    if precision != "float32":
        round_weights(reference, precision)
    found = server_logits(expert_model(name), precision)
    assert_close(found, transformers_logits(reference), 1e-5 if precision == "float32" else 5e-3)


def test_a_configuration_that_asks_for_the_routers_logits_changes_nothing() -> None:
    found = server_logits(expert_model("olmoe", output_router_logits=True), "bitsandbytes-int8")
    assert torch.equal(found, server_logits(expert_model("olmoe"), "bitsandbytes-int8"))


@pytest.mark.parametrize("backends", BACKENDS_OF.values(), ids=BACKENDS_OF)
def test_every_instruction_set_computes_the_experts_in_int4(backends: Any) -> None:
    reference = expert_model("mixtral")
    round_weights(reference, "int4")
    assert_close(server_logits(expert_model("mixtral"), "int4", backends), transformers_logits(reference), 5e-3)


@NEEDS_KERNELS
def test_experts_in_bfloat16_are_packed_too() -> None:
    model = expert_model("gpt-oss", dtype=torch.bfloat16)
    expected = transformers_logits(model)
    assert_close(server_logits(model, "bfloat16"), expected, 0.05)
    assert isinstance(model.model.layers[0].mlp.experts.down[0], KernelLinear)


def packed_experts(precision: str, backends: Any, *, batch_invariant: bool) -> PackedExperts:
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    stack = expert_model("mixtral", dtype=dtype).model.layers[0].mlp.experts
    bound = partial(pack, precision=precision, batch_invariant=batch_invariant, backends=backends)
    return pack_experts(stack, bound, dtype, batch_invariant=batch_invariant)


@pytest.mark.parametrize(
    ("precision", "backends", "is_invariant"),
    [
        pytest.param("bitsandbytes-int8", BACKENDS, False, marks=NEEDS_KERNELS),
        pytest.param("bfloat16", BACKENDS, False, marks=NEEDS_KERNELS),
        pytest.param("int4", BACKENDS, True, marks=NEEDS_KERNELS),
        ("float32", TORCH, True),
    ],
)
@torch.inference_mode()
def test_a_rows_result_depends_neither_on_the_batch_nor_on_threads(
    precision: str, backends: Any, is_invariant: bool
) -> None:
    experts = packed_experts(precision, backends, batch_invariant=is_invariant)
    torch.manual_seed(0)
    rows = torch.randn(16, 64).to(torch.bfloat16 if precision == "bfloat16" else torch.float32)
    chosen = torch.rand(16, 4).topk(2).indices
    factors = torch.rand(16, 2)
    whole = experts(rows, chosen, factors)
    order = torch.randperm(16)
    assert torch.equal(experts(rows[order], chosen[order], factors[order]), whole[order])
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        if is_invariant and precision == "float32":  # the pass is padded to one number of rows
            return
        for row in range(16):
            alone = slice(row, row + 1)
            assert torch.equal(experts(rows[alone], chosen[alone], factors[alone])[0], whole[row])
    finally:
        torch.set_num_threads(threads)


@NEEDS_KERNELS
def test_int8_takes_at_most_a_third_of_the_memory_of_float32() -> None:
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_local_experts": 8}
    model = expert_model("mixtral", **sizes)
    before = model.get_memory_footprint()
    fuse(model, "bitsandbytes-int8", batch_invariant=False)
    assert memory_bytes(model) <= 0.35 * before


def test_the_parameters_of_a_packed_stack_are_freed() -> None:
    experts = packed_experts("bitsandbytes-int8", BACKENDS, batch_invariant=False)
    assert not [parameter for parameter in experts.parameters() if parameter.dim() == 3]


@NEEDS_KERNELS
@pytest.mark.parametrize("precision", ["bfloat16", "bitsandbytes-int8"])
def test_a_sequence_has_the_same_bits_alone_and_beside_others(precision: Precision) -> None:
    model = expert_model("qwen-3", dtype=activation_dtype(precision, torch.device("cpu")))
    paged.register()
    model.set_attn_implementation(paged.NAME)
    fuse(model, precision, batch_invariant=False)
    runner = ModelRunner(model, num_blocks=8, cache_dtype=torch.bfloat16)
    assert runner.supports_mixed_batch
    pieces = [PromptPiece([row + 1], 0, PROMPT[row:], wants_logits=True) for row in range(4)]
    alone = torch.cat([runner.prefill([piece]).clone() for piece in pieces])
    assert torch.equal(runner.prefill(pieces), alone)
    tokens = [NextToken([row + 1], len(PROMPT) - row, 300 + row) for row in range(4)]
    alone = torch.cat([runner.decode([token]).clone() for token in tokens])
    assert torch.equal(runner.decode(tokens), alone)
    other = PromptPiece([6], 0, PROMPT, wants_logits=True)
    assert torch.equal(runner.mixed(tokens, [other])[:4], alone)
