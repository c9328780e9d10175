"""Packed linears against the plain product: every precision, kernel and row count."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from bitsandbytes.nn import Linear8bitLt
from gguf import GGMLQuantizationType, quants
from torch import nn
from transformers import AutoModelForCausalLM

from inference_server.cpu.linear import pack as linears
from inference_server.cpu.linear.amx import layers as compiled_linear
from inference_server.cpu.linear.amx.layers import Bf16Linear, CompiledLinear
from inference_server.cpu.linear.integer_weights import int4_of, int8_of
from inference_server.cpu.linear.pack import pack, pack_linears
from inference_server.cpu.linear.torch_integer import TorchLinear
from inference_server.kernels import ops as kernel_functions

ROWS = [1, 2, 3, 7, 8, 9, 16, 17, 33, 64]
# Of the largest output. Compiled: activations have 15 bits and a sign, so rounding is at most 2**-15 of a row's largest
# value at each of 576 inputs, and cancels mostly. torch: activations, and bfloat16 results, have 8 bits.
TOLERANCE = {"compiled": 3e-4, "torch": 1.5e-2}


@pytest.fixture(params=["compiled", "torch", "torch without bfloat16"])
def kernels(request, monkeypatch):
    """Which kernels there are; those that this CPU lacks are skipped."""
    if request.param == "compiled":
        if not compiled_linear.has_kernel("int8", 64):
            pytest.skip("this CPU has no tile registers for int8")
        return "compiled"
    monkeypatch.setattr(linears, "has_kernel", lambda *_: False)
    if request.param == "torch without bfloat16":
        monkeypatch.setattr(linears, "cpu_multiplies_bfloat16", lambda: False)
    return "torch"


@pytest.fixture(params=[1, 2], autouse=True)
def num_threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


def plain(*out_features, in_features=576, bias=False):
    return [nn.Linear(in_features, n, bias=bias).requires_grad_(False) for n in out_features]


def int8_linear(linear):
    quantised = Linear8bitLt(linear.in_features, linear.out_features, linear.bias is not None, has_fp16_weights=False)
    quantised.load_state_dict(linear.state_dict())
    return quantised.requires_grad_(False).to("cpu")


def q4_1_linear(out_features, in_features=576, bias=False):
    """Weights as they come out of a Q4_1 tensor of a GGUF file, and the bytes in that file."""
    weight = np.random.default_rng(0).normal(size=(out_features, in_features)).astype(np.float32) + 0.1
    raw = quants.quantize(weight, GGMLQuantizationType.Q4_1)
    (linear,) = plain(out_features, in_features=in_features, bias=bias)
    linear.weight = nn.Parameter(
        torch.from_numpy(quants.dequantize(raw, GGMLQuantizationType.Q4_1)), requires_grad=False
    )
    return linear, raw


def assert_close(found, wanted, tolerance):
    assert found.shape == wanted.shape
    assert found.is_contiguous()
    torch.testing.assert_close(found.float(), wanted, rtol=0, atol=tolerance * float(wanted.abs().max()))


# int8.


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("num_rows", ROWS)
def test_int8_multiplies_bitsandbytes_own_weights(kernels, num_rows, bias):
    originals = plain(576, 192, 192, bias=bias)
    quantised = [int8_linear(linear) for linear in originals]
    weights = [linear.weight.CB * linear.weight.SCB[:, None] / 127 for linear in quantised]
    x = torch.randn(num_rows, 576)
    wanted = torch.cat([F.linear(x, w, o.bias) for w, o in zip(weights, originals, strict=True)], -1)
    assert_close(pack(quantised, "bitsandbytes-int8")(x), wanted, TOLERANCE[kernels])


def test_int8_weights_are_found_after_a_first_call_of_bitsandbytes_as_well(kernels):
    (linear,) = [int8_linear(linear) for linear in plain(64)]
    x = torch.randn(3, 576)
    before = int8_of([linear])
    linear(x)
    after = int8_of([linear])
    assert torch.equal(before.codes, after.codes)
    assert torch.equal(before.scales, after.scales)


def test_a_plain_linear_gets_eight_bits_by_its_rows(kernels):
    originals = plain(64)
    found = int8_of(originals)
    step = found.scales[:, None]
    assert ((found.dequantize() - originals[0].weight).abs() <= step * 0.5001).all()
    x = torch.randn(5, 576)
    assert_close(pack(originals, "bitsandbytes-int8")(x), F.linear(x, found.dequantize()), TOLERANCE[kernels])


# int4.


def test_q4_1_is_recovered_exactly():
    linear, raw = q4_1_linear(96)
    blocks = raw.reshape(-1, 20)
    factors = torch.from_numpy(blocks[:, :4].copy().view(np.float16).astype(np.float32))
    halves = np.concatenate([blocks[:, 4:] & 15, blocks[:, 4:] >> 4], axis=1)
    found = int4_of([linear])
    assert torch.equal(found.scales.flatten(), factors[:, 0])
    assert torch.equal(found.minima.flatten(), factors[:, 1])
    assert torch.equal(found.codes.view(-1, 32), torch.from_numpy(halves))
    assert torch.equal(found.dequantize(), linear.weight)


def test_other_weights_are_rounded_to_the_nearest_of_16():
    (linear,) = plain(64)
    found = int4_of([linear])
    error = (found.dequantize() - linear.weight).view(64, -1, 32).abs()
    # Half a step, and what float16 makes of minimum and scale.
    assert (error <= 0.51 * found.scales[..., None] + 1e-4).all()


def test_groups_of_equal_weights_and_of_zeros_are_kept():
    (linear,) = plain(32, in_features=64)
    linear.weight[:, :32] = 0.25
    linear.weight[:, 32:] = 0.0
    assert torch.equal(int4_of([linear]).dequantize(), linear.weight)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("num_rows", ROWS)
def test_int4_multiplies_the_files_own_weights(kernels, num_rows, bias):
    parts = [q4_1_linear(n, bias=bias)[0] for n in (576, 192, 192)]
    x = torch.randn(num_rows, 576)
    wanted = torch.cat([linear(x) for linear in parts], -1)
    assert_close(pack(parts, "int4", batch_invariant=True)(x), wanted, TOLERANCE[kernels])
    # From some number of rows on, weights and activations are bfloat16.
    assert_close(pack(parts, "int4")(x), wanted, TOLERANCE["torch"])


# 16 bits.


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("num_rows", ROWS)
def test_bfloat16_is_the_plain_product(kernels, num_rows, bias):
    parts = [linear.bfloat16() for linear in plain(576, 192, bias=bias)]
    x = torch.randn(num_rows, 576).bfloat16()
    wanted = torch.cat([linear(x) for linear in parts], -1).float()
    # Both round a float32 sum once: they may differ by a unit in the last place.
    assert_close(pack(parts, "bfloat16")(x), wanted, 2**-7)


def test_one_of_the_stacked_linears_may_lack_a_bias():
    for dtype, precision in ((torch.bfloat16, "bfloat16"), (torch.float32, "bitsandbytes-int8")):
        parts = [*plain(64, bias=True), *plain(32)]
        x = torch.randn(3, 576)
        wanted = torch.cat([linear(x) for linear in parts], -1)
        found = pack([linear.to(dtype) for linear in parts], precision)(x.to(dtype))
        assert_close(found, wanted, 0.02)


def test_float32_and_a_cpu_without_bfloat16_keep_plain_linears(monkeypatch):
    monkeypatch.setattr(linears, "cpu_multiplies_bfloat16", lambda: False)
    monkeypatch.setattr(linears, "has_kernel", lambda *_: False)
    for dtype in (torch.float32, torch.bfloat16):
        parts = [linear.to(dtype) for linear in plain(64, 32, bias=True)]
        x = torch.randn(3, 576, dtype=dtype)
        assert pack(parts[:1], "float32") is parts[0]
        stacked = pack(parts, "float32")
        assert type(stacked) is nn.Linear
        wanted = torch.cat([linear(x) for linear in parts], -1)
        torch.testing.assert_close(stacked(x), wanted)


# What holds for all.


def packed(precision, **options):
    if precision == "bfloat16":
        return pack([linear.bfloat16() for linear in plain(576)], precision, **options), torch.bfloat16
    return pack(plain(576), precision, **options), torch.float32


@pytest.mark.parametrize("precision", ["bitsandbytes-int8", "int4", "bfloat16"])
@pytest.mark.parametrize("num_rows", [1, 8, 9, 32, 64])
def test_a_row_has_the_same_bits_whatever_the_other_rows_hold(kernels, precision, num_rows):
    module, dtype = packed(precision, batch_invariant=True)
    x = torch.randn(num_rows, 576, dtype=dtype)
    others = torch.randn(num_rows, 576, dtype=dtype) * 100
    for row in {0, num_rows // 2, num_rows - 1}:
        mixed = others.clone()
        mixed[row] = x[row]
        assert torch.equal(module(x)[row], module(mixed)[row])


@pytest.mark.parametrize("precision", ["bitsandbytes-int8", "int4", "bfloat16"])
def test_a_compiled_linear_gives_the_same_bits_for_any_number_of_rows(kernels, precision):
    if kernels != "compiled":
        pytest.skip("torch's operations do not promise it")
    module, dtype = packed(precision, batch_invariant=True)
    x = torch.randn(64, 576, dtype=dtype)
    whole = module(x)
    for num_rows in range(1, 64):
        assert torch.equal(module(x[:num_rows]), whole[:num_rows])


@pytest.mark.parametrize("out_features", [1, 32, 403])
def test_a_head_of_16_bits_gives_float32_rounded_to_them(kernels, out_features):
    if kernels != "compiled":
        pytest.skip("a plain product is of its inputs' dtype")
    (part,) = [linear.bfloat16() for linear in plain(out_features, bias=True)]
    x = torch.randn(5, 576).bfloat16()
    found = pack([part], "bfloat16", is_head=True)(x)
    assert found.dtype == torch.float32
    assert torch.equal(found, pack([part], "bfloat16")(x).float())


@pytest.mark.parametrize("precision", ["bitsandbytes-int8", "int4"])
@pytest.mark.parametrize(("out_features", "in_features"), [(32, 64), (48, 64), (403, 64), (32, 96), (32, 40), (1, 128)])
def test_shapes_that_no_kernel_takes_are_multiplied_all_the_same(kernels, precision, out_features, in_features):
    parts = plain(out_features, in_features=in_features, bias=True)
    x = torch.randn(2, 5, in_features)
    module = pack(parts, precision)
    wanted = parts[0](x)
    assert_close(module(x), wanted, 0.02 if precision == "bitsandbytes-int8" else 0.15)


@pytest.mark.parametrize("precision", ["bitsandbytes-int8", "int4"])
def test_rows_that_lie_apart_and_no_rows_at_all(kernels, precision):
    module, _ = packed(precision)
    x = torch.randn(6, 3, 576).transpose(0, 1)
    assert torch.equal(module(x), module(x.contiguous()))
    assert module(x[:0]).shape == (0, 6, 576)


@pytest.mark.parametrize("precision", ["bitsandbytes-int8", "int4"])
def test_zeros_give_the_bias_and_what_is_not_finite_stays_in_its_row(kernels, precision):
    parts = plain(64, bias=True)
    bias = parts[0].bias.clone()
    module = pack(parts, precision)
    x = torch.zeros(4, 576)
    x[1, 5] = float("nan")
    x[2, 7] = float("inf")
    output = module(x)
    assert torch.equal(output[0], output[3])
    assert torch.allclose(output[0], bias, atol=1e-2)
    assert not output[1:3].isfinite().any()


@pytest.mark.parametrize("precision", ["bitsandbytes-int8", "int4"])
def test_torchs_operations_serve_every_row_count_where_bits_must_not_change(monkeypatch, precision):
    monkeypatch.setattr(linears, "has_kernel", lambda *_: False)
    module, _ = packed(precision, batch_invariant=True)
    assert isinstance(module, TorchLinear)
    assert not list(module.children())


@pytest.mark.parametrize("batch_invariant", [False, True])
@pytest.mark.parametrize("precision", ["bfloat16", "bitsandbytes-int8", "int4"])
@torch.inference_mode()
def test_a_gated_product_has_the_bits_of_a_product_and_a_gate(precision, batch_invariant):
    if not compiled_linear.has_kernel("int8", 64):
        pytest.skip("this CPU has no tile registers for int8")
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    parts = [part.to(dtype) for part in plain(48, 48, bias=True)]
    separate, gated = (
        pack(parts, precision, batch_invariant=batch_invariant, is_gated=gated) for gated in (False, True)
    )
    assert gated.is_gated and gated.out_features == 48
    for rows in [*ROWS, 130]:
        x = torch.randn(2, rows, 576).to(dtype)
        wanted = kernel_functions.silu_mul(separate(x).flatten(0, 1))
        assert torch.equal(gated(x).flatten(0, 1), wanted)


def test_gates_of_an_odd_width_are_left_to_a_kernel_of_their_own():
    module = pack(plain(40, 40), "int4", is_gated=True)
    assert not getattr(module, "is_gated", False)
    assert module(torch.randn(3, 576)).shape == (3, 80)


def test_memory_is_what_the_codes_take():
    if not compiled_linear.has_kernel("int8", 64):
        pytest.skip("this CPU has no tile registers for int8")
    num_weights = 3072 * 576
    for precision, bits in (("bitsandbytes-int8", 8), ("int4", 5)):
        module = pack(plain(3072), precision, batch_invariant=True)
        assert module.num_bytes == pytest.approx(num_weights * bits / 8, rel=0.02)


# Whole models.


@pytest.mark.parametrize(("precision", "kind"), [("int4", CompiledLinear), ("bfloat16", Bf16Linear)])
@pytest.mark.parametrize("architecture", ["llama-2", "gemma-2"])
@torch.inference_mode()
def test_every_linear_of_a_model_is_replaced_and_the_embedding_stays(tiny_model, architecture, precision, kind):
    if not (linears.cpu_multiplies_bfloat16() and compiled_linear.has_kernel("int4", 64)):
        pytest.skip("this CPU keeps plain linears")
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(tiny_model(architecture), dtype=dtype)
    table = model.get_input_embeddings().weight
    pack_linears(model, precision)
    assert not [module for module in model.modules() if type(module) is nn.Linear]
    replaced = [
        model.lm_head,
        *(child for layer in model.model.layers for part in (layer.self_attn, layer.mlp) for child in part.children()),
    ]
    assert len([module for module in replaced if isinstance(module, kind)]) == 3 * 7 + 1
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


def test_a_subclass_that_may_do_something_else_stays():
    class Strange(nn.Linear):
        pass

    model = nn.Sequential(Strange(64, 64), nn.Linear(64, 64))
    model.get_output_embeddings = lambda: None
    pack_linears(model, "int4")
    assert isinstance(model[0], Strange)
    assert type(model[1]) is not nn.Linear
