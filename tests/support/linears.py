"""Linear layers for tests: plain, of bitsandbytes, and as a GGUF file stores them."""

import numpy as np
import torch
from bitsandbytes.nn import Linear8bitLt
from gguf import GGMLQuantizationType, quants
from torch import nn


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
