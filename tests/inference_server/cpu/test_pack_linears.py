"""Every linear of a model is replaced by a packed one, and packed weights are read by the backend of their layout."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModelForCausalLM

from inference_server.cpu.linear.backends import BACKENDS, choose_backend, from_packed, preferred_layout
from inference_server.cpu.linear.kernel_linear import KernelLinear, LinearKind
from inference_server.cpu.linear.pack import pack, pack_linears
from inference_server.cpu.linear.torch_backend import TorchBackend
from tests.support.kernels.linears import OtherBackend, OtherLinear, assert_close, plain

NEEDS_KERNELS = pytest.mark.skipif(BACKENDS[0].obstacle() is not None, reason="this CPU has no linear kernels")


@NEEDS_KERNELS
@pytest.mark.parametrize(("precision", "head_format"), [("int4", "int8"), ("bfloat16", "bf16")])
@pytest.mark.parametrize("architecture", ["llama-2", "gemma-2"])
@torch.inference_mode()
def test_every_linear_of_a_model_is_replaced_and_the_embedding_stays(tiny_model, architecture, precision, head_format):
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(tiny_model(architecture), dtype=dtype)
    table = model.get_input_embeddings().weight
    pack_linears(model, precision)
    assert not [module for module in model.modules() if type(module) is nn.Linear]
    replaced = [
        model.lm_head,
        *(child for layer in model.model.layers for part in (layer.self_attn, layer.mlp) for child in part.children()),
    ]
    assert len([module for module in replaced if isinstance(module, KernelLinear)]) == 3 * 7 + 1
    assert model.lm_head.packed.kind.weight_format == head_format
    assert model.get_input_embeddings().weight is table
    assert table.dtype == dtype
    assert model(torch.tensor([[1, 300, 290]])).logits.shape == (1, 3, 403)


@torch.inference_mode()
def test_the_head_of_an_int4_model_has_eight_bits(tiny_model):
    model = AutoModelForCausalLM.from_pretrained(tiny_model("llama-2"), dtype=torch.float32)
    head = model.lm_head.weight.clone()
    pack_linears(model, "int4")
    x = torch.randn(3, 64)
    assert_close(model.lm_head(x), F.linear(x, head), 0.02)


def test_a_subclass_that_may_compute_differently_is_not_replaced():
    class Other(nn.Linear):
        pass

    model = nn.Sequential(Other(64, 64), nn.Linear(64, 64))
    model.get_output_embeddings = lambda: None
    pack_linears(model, "int4")
    assert isinstance(model[0], Other)
    assert type(model[1]) is not nn.Linear


def test_the_first_backend_that_supports_a_layer_packs_it():
    backends = (OtherBackend(), TorchBackend())
    assert choose_backend("bf16", 576, backends) is backends[0]
    assert choose_backend("int8", 576, backends) is backends[1]
    module = pack([linear.bfloat16() for linear in plain(64, 64)], "bfloat16", is_gated=True, backends=backends)
    assert isinstance(module, OtherLinear)
    assert module.packed.kind == LinearKind("bf16", is_gated=True)
    assert module.is_gated and module.out_features == 64
    assert not getattr(pack(plain(64, 64), "bitsandbytes-int8", is_gated=True, backends=backends), "is_gated", False)


def test_packed_weights_are_read_by_the_backend_of_their_layout_alone():
    backends = (OtherBackend(), TorchBackend())
    packed = pack([linear.bfloat16() for linear in plain(64)], "bfloat16", backends=backends).packed
    assert packed.layout == preferred_layout(backends) == "other7"
    assert from_packed(packed, backends).packed is packed
    with pytest.raises(ValueError, match="no kernel on this CPU reads the packed weights' layout other7"):
        from_packed(packed)


def test_a_backend_that_cannot_run_does_not_name_the_layout():
    other = OtherBackend()
    other.obstacle = lambda: "this CPU lacks it"
    assert preferred_layout((other, TorchBackend())) == "torch1"
