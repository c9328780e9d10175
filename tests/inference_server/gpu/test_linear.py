"""Linear layers for a GPU, on CPU tensors: bitsandbytes' integers, biases, and products in several parts."""

import pytest
import torch
from torch import nn

from inference_server.gpu import reference
from inference_server.gpu.linear import Int8Linear, has_outlier_threshold, replace_int8, stacked
from tests.support.kernels.linears import int8_linear, plain


def dequantized(linear):
    codes, maxima = linear.weight.CB, linear.weight.SCB
    return codes.float() * maxima[:, None] / 127


@pytest.mark.parametrize("is_called", [False, True])
def test_an_int8_layer_has_bitsandbytes_integers_before_and_after_its_first_call(is_called):
    (linear,) = plain(48, in_features=64, bias=True)
    quantized = int8_linear(linear)
    weight = dequantized(quantized)
    x = torch.randn(5, 64)
    if is_called:
        quantized(x)
        assert quantized.weight.CB is None
    torch.testing.assert_close(stacked([quantized])(x), x @ weight.t() + linear.bias)


def test_stacked_layers_have_all_outputs_and_zeros_for_a_missing_bias():
    first, second = plain(48, in_features=64, bias=True)[0], plain(16, in_features=64)[0]
    x = torch.randn(2, 3, 64)
    expected = torch.cat([first(x), second(x)], dim=-1)
    torch.testing.assert_close(stacked([first, second])(x), expected)
    both = stacked([int8_linear(first), int8_linear(second)])
    assert both(x).shape == expected.shape
    torch.testing.assert_close(both(x), expected, atol=0.05, rtol=0)


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_product_in_parts_equals_the_whole(has_bias, dtype, monkeypatch):
    codes = torch.randint(-127, 128, (50, 64), dtype=torch.int8)
    scales = torch.rand(50) / 1000
    bias = torch.randn(50) if has_bias else None
    x = torch.randn(7, 64).to(dtype)
    expected = nn.functional.linear(x, (codes * scales[:, None]).to(dtype), None if bias is None else bias.to(dtype))
    monkeypatch.setattr(reference, "_MAX_DEQUANTIZED", 64 * 16)
    torch.testing.assert_close(reference.int8_linear(x, codes, scales, bias), expected)


def test_every_int8_layer_of_a_model_is_replaced():
    model = nn.Sequential(int8_linear(plain(32, in_features=64)[0]), nn.Sequential(plain(8, in_features=32)[0]))
    model[1].append(int8_linear(plain(8, in_features=8)[0]))
    codes = model[0].weight.CB
    assert replace_int8(model) == 2
    assert [type(module) for module in (model[0], model[1][0], model[1][1])] == [Int8Linear, nn.Linear, Int8Linear]
    assert model[0].codes.data_ptr() == codes.data_ptr()


def test_a_model_that_separates_outliers_keeps_its_layers():
    model = nn.Sequential(int8_linear(plain(32, in_features=64)[0]), int8_linear(plain(8, in_features=32)[0]))
    model[1].state.threshold = 6.0
    assert has_outlier_threshold(model)
    assert replace_int8(model) == 0
    assert type(model[0]).__name__ == "Linear8bitLt"
