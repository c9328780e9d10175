"""Integer codes of linear weights: those of bitsandbytes and of GGUF files are kept, others are rounded."""

import numpy as np
import torch

from inference_server.cpu.linear.integer_weights import int4_weights, int8_weights
from tests.support.kernels.linears import int8_linear, plain, q4_1_linear


def test_int8_weights_are_found_after_a_first_call_of_bitsandbytes():
    (linear,) = [int8_linear(linear) for linear in plain(64)]
    x = torch.randn(3, 576)
    before = int8_weights([linear])
    linear(x)
    after = int8_weights([linear])
    assert torch.equal(before.codes, after.codes)
    assert torch.equal(before.scales, after.scales)


def test_q4_1_is_recovered_exactly():
    linear, raw = q4_1_linear(96)
    blocks = raw.reshape(-1, 20)
    factors = torch.from_numpy(blocks[:, :4].copy().view(np.float16).astype(np.float32))
    halves = np.concatenate([blocks[:, 4:] & 15, blocks[:, 4:] >> 4], axis=1)
    found = int4_weights([linear])
    assert torch.equal(found.scales.flatten(), factors[:, 0])
    assert torch.equal(found.minima.flatten(), factors[:, 1])
    assert torch.equal(found.codes.view(-1, 32), torch.from_numpy(halves))
    assert torch.equal(found.dequantize(), linear.weight)


def test_other_weights_are_rounded_to_the_nearest_of_16():
    (linear,) = plain(64)
    found = int4_weights([linear])
    error = (found.dequantize() - linear.weight).view(64, -1, 32).abs()
    # Half a step, and what float16 makes of minimum and scale.
    assert (error <= 0.51 * found.scales[..., None] + 1e-4).all()


def test_groups_of_equal_weights_and_of_zeros_are_kept():
    (linear,) = plain(32, in_features=64)
    linear.weight[:, :32] = 0.25
    linear.weight[:, 32:] = 0.0
    assert torch.equal(int4_weights([linear]).dequantize(), linear.weight)
