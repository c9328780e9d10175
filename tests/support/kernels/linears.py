"""Linear layers for tests: plain, of bitsandbytes, as a GGUF file stores them, and of a backend without kernels."""

import numpy as np
import torch
from bitsandbytes.nn import Linear8bitLt
from gguf import GGMLQuantizationType, quants
from torch import nn

from inference_server.cpu.linear.kernel_linear import KernelLinear, PackedWeights, layout_name
from inference_server.cpu.linear.torch_backend import TorchBackend


def plain(*out_features, in_features=576, bias=False):
    return [nn.Linear(in_features, n, bias=bias).requires_grad_(False) for n in out_features]


def int8_linear(linear):
    quantised = Linear8bitLt(linear.in_features, linear.out_features, linear.bias is not None, has_fp16_weights=False)
    quantised.load_state_dict(linear.state_dict())
    return quantised.requires_grad_(False).to("cpu")


def q4_1_linear(out_features, in_features=576, bias=False):
    """Return weights read from a Q4_1 tensor of a GGUF file, and the bytes in that file."""
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


class OtherLinear(KernelLinear):
    panel_outputs = 16


class OtherBackend(TorchBackend):
    """A backend that multiplies weights in bfloat16 only."""

    name = "other"
    layout_version = 7

    def supports(self, weight_format, in_features):
        return weight_format == "bf16"

    def supports_gate(self, num_outputs):
        return True

    def pack(self, weight, bias, kind):
        layout = layout_name(self.name, self.layout_version)
        return OtherLinear(PackedWeights(layout, kind, tuple(weight.shape), weight, None, torch.zeros(len(weight))))

    def from_packed(self, packed):
        return OtherLinear(packed)
