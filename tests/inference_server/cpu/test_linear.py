"""Packed linear layers against the plain matrix product: every precision, backend and row count."""

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from inference_server.cpu.linear.backends import LinearBackend
from inference_server.cpu.linear.integer_weights import int8_weights
from inference_server.cpu.linear.pack import pack
from inference_server.cpu.linear.panels import PanelBackend
from inference_server.cpu.linear.torch_backend import TorchBackend
from inference_server.kernels import ops
from inference_server.kernels.isa import choice
from tests.support.kernels.linears import assert_close, int8_linear, plain, q4_1_linear

ROWS = [1, 3, 8, 33]
NEEDS_KERNELS = pytest.mark.skipif(choice.obstacle() is not None, reason="this CPU has no kernels")


@dataclass(frozen=True)
class Candidate:
    """Backends to pack with, and the largest error of a layer relative to its largest output.

    Kernels: activations have 13 bits and a sign, so rounding is at most 2**-14 of a row's largest value at each of 576
    inputs, and mostly cancels. torch: bfloat16 results have 8 bits.
    """

    backends: tuple[LinearBackend, ...]
    tolerance: float


KERNELS = [
    pytest.param(Candidate((PanelBackend(isa), TorchBackend()), 6e-4), id=isa.name) for isa in choice.available()
]
CANDIDATES = [*KERNELS, pytest.param(Candidate((TorchBackend(),), 1e-5), id="torch")]
EVERY_KERNEL = pytest.mark.parametrize("candidate", KERNELS)
EVERY_CANDIDATE = pytest.mark.parametrize("candidate", CANDIDATES)
# Biases and a second shape alternate. Another test compares all row counts up to 64 with each other.
PRODUCTS = pytest.mark.parametrize(
    ("num_rows", "bias", "shape"),
    [(rows, index % 2 == 1, [(576, 192, 192), (96, 48)][index // 2]) for index, rows in enumerate(ROWS)],
)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


# int8.


@EVERY_CANDIDATE
@PRODUCTS
def test_int8_multiplies_bitsandbytes_own_weights(candidate, num_rows, bias, shape):
    originals = plain(*shape, bias=bias)
    quantised = [int8_linear(linear) for linear in originals]
    weights = [linear.weight.CB * linear.weight.SCB[:, None] / 127 for linear in quantised]
    x = torch.randn(num_rows, 576)
    wanted = torch.cat([F.linear(x, w, o.bias) for w, o in zip(weights, originals, strict=True)], -1)
    assert_close(pack(quantised, "bitsandbytes-int8", backends=candidate.backends)(x), wanted, candidate.tolerance)


@EVERY_CANDIDATE
def test_a_plain_linear_gets_eight_bits_by_its_rows(candidate):
    originals = plain(64)
    found = int8_weights(originals)
    step = found.scales[:, None]
    assert ((found.dequantize() - originals[0].weight).abs() <= step * 0.5001).all()
    x = torch.randn(5, 576)
    packed = pack(originals, "bitsandbytes-int8", backends=candidate.backends)
    assert_close(packed(x), F.linear(x, found.dequantize()), candidate.tolerance)


# int4.


@EVERY_CANDIDATE
@PRODUCTS
def test_int4_multiplies_the_files_own_weights(candidate, num_rows, bias, shape):
    parts = [q4_1_linear(n, bias=bias)[0] for n in shape]
    x = torch.randn(num_rows, 576)
    wanted = torch.cat([linear(x) for linear in parts], -1)
    invariant = pack(parts, "int4", batch_invariant=True, backends=candidate.backends)
    assert_close(invariant(x), wanted, candidate.tolerance)
    # From some number of rows on, weights and activations are bfloat16.
    assert_close(pack(parts, "int4", backends=candidate.backends)(x), wanted, 1.5e-2)


# 16 bits.


@EVERY_CANDIDATE
@PRODUCTS
def test_bfloat16_is_the_plain_product(candidate, num_rows, bias, shape):
    parts = [linear.bfloat16() for linear in plain(*shape, bias=bias)]
    x = torch.randn(num_rows, 576).bfloat16()
    wanted = torch.cat([linear(x) for linear in parts], -1).float()
    # Both round a float32 sum once: they may differ by a unit in the last place.
    assert_close(pack(parts, "bfloat16", backends=candidate.backends)(x), wanted, 2**-7)


def test_one_of_the_stacked_linears_may_lack_a_bias():
    for dtype, precision in ((torch.bfloat16, "bfloat16"), (torch.float32, "bitsandbytes-int8")):
        parts = [*plain(64, bias=True), *plain(32)]
        x = torch.randn(3, 576)
        wanted = torch.cat([linear(x) for linear in parts], -1)
        found = pack([linear.to(dtype) for linear in parts], precision)(x.to(dtype))
        assert_close(found, wanted, 0.02)


def test_torchs_backend_keeps_plain_linears_without_a_copy():
    backends = (TorchBackend(),)
    for dtype in (torch.float32, torch.bfloat16):
        parts = [linear.to(dtype) for linear in plain(64, 32, bias=True)]
        x = torch.randn(3, 576, dtype=dtype)
        single, stacked = (pack(some, "float32", backends=backends) for some in (parts[:1], parts))
        assert type(single) is type(stacked) is nn.Linear
        assert single.weight.data_ptr() == parts[0].weight.data_ptr()
        wanted = torch.cat([linear(x) for linear in parts], -1)
        torch.testing.assert_close(stacked(x), wanted)


# All precisions.

PRECISIONS = pytest.mark.parametrize("precision", ["bitsandbytes-int8", "int4", "bfloat16"])
INTEGERS = pytest.mark.parametrize("precision", ["bitsandbytes-int8", "int4"])


def packed(precision, **options):
    if precision == "bfloat16":
        return pack([linear.bfloat16() for linear in plain(576)], precision, **options), torch.bfloat16
    return pack(plain(576), precision, **options), torch.float32


@EVERY_CANDIDATE
@PRECISIONS
def test_a_rows_result_does_not_depend_on_the_other_rows(candidate, precision, num_threads):
    module, dtype = packed(precision, batch_invariant=True, backends=candidate.backends)
    for num_rows in (8, 9, 64):
        x = torch.randn(num_rows, 576, dtype=dtype)
        others = torch.randn(num_rows, 576, dtype=dtype) * 100
        for row in {0, num_rows // 2, num_rows - 1}:
            mixed = others.clone()
            mixed[row] = x[row]
            assert torch.equal(module(x)[row], module(mixed)[row])


@EVERY_KERNEL
@PRECISIONS
def test_a_kernel_gives_the_same_bits_for_any_number_of_rows(candidate, precision, num_threads):
    module, dtype = packed(precision, batch_invariant=True, backends=candidate.backends)
    x = torch.randn(64, 576, dtype=dtype)
    whole = module(x)
    for num_rows in range(1, 64):
        assert torch.equal(module(x[:num_rows]), whole[:num_rows])


@NEEDS_KERNELS
@pytest.mark.parametrize("out_features", [1, 32, 403])
def test_a_16_bit_head_returns_float32_rounded_to_16_bits(out_features):
    (part,) = [linear.bfloat16() for linear in plain(out_features, bias=True)]
    x = torch.randn(5, 576).bfloat16()
    found = pack([part], "bfloat16", is_head=True)(x)
    assert found.dtype == torch.float32
    assert torch.equal(found, pack([part], "bfloat16")(x).float())


@EVERY_CANDIDATE
@INTEGERS
@pytest.mark.parametrize(("out_features", "in_features"), [(32, 64), (48, 64), (403, 64), (32, 96), (32, 40), (1, 128)])
def test_every_shape_is_multiplied(candidate, precision, out_features, in_features):
    parts = plain(out_features, in_features=in_features, bias=True)
    x = torch.randn(2, 5, in_features)
    module = pack(parts, precision, backends=candidate.backends)
    wanted = parts[0](x)
    assert_close(module(x), wanted, 0.02 if precision == "bitsandbytes-int8" else 0.15)


@EVERY_CANDIDATE
@INTEGERS
def test_rows_that_are_not_contiguous_and_no_rows(candidate, precision):
    module, _ = packed(precision, backends=candidate.backends)
    x = torch.randn(6, 3, 576).transpose(0, 1)
    assert torch.equal(module(x), module(x.contiguous()))
    assert module(x[:0]).shape == (0, 6, 576)


@EVERY_CANDIDATE
@INTEGERS
def test_zeros_give_the_bias_and_nan_and_infinity_stay_in_their_rows(candidate, precision):
    parts = plain(64, bias=True)
    bias = parts[0].bias.clone()
    module = pack(parts, precision, backends=candidate.backends)
    x = torch.zeros(4, 576)
    x[1, 5] = float("nan")
    x[2, 7] = float("inf")
    output = module(x)
    assert torch.equal(output[0], output[3])
    assert torch.allclose(output[0], bias, atol=1e-2)
    assert not output[1:3].isfinite().any()


@NEEDS_KERNELS
@PRECISIONS
@pytest.mark.parametrize("batch_invariant", [False, True])
@torch.inference_mode()
def test_a_gated_layer_is_bit_identical_to_a_layer_and_a_gate(precision, batch_invariant, num_threads):
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    parts = [part.to(dtype) for part in plain(48, 48, bias=True)]
    separate, gated = (
        pack(parts, precision, batch_invariant=batch_invariant, is_gated=gated) for gated in (False, True)
    )
    assert gated.is_gated and gated.out_features == 48
    for rows in [*ROWS, 130]:
        x = torch.randn(2, rows, 576).to(dtype)
        wanted = ops.silu_mul(separate(x).flatten(0, 1))
        assert torch.equal(gated(x).flatten(0, 1), wanted)


def test_gates_of_an_odd_width_use_a_separate_kernel():
    module = pack(plain(40, 40), "int4", is_gated=True)
    assert not getattr(module, "is_gated", False)
    assert module(torch.randn(3, 576)).shape == (3, 80)


@NEEDS_KERNELS
def test_memory_is_that_of_the_codes():
    num_weights = 3072 * 576
    for precision, bits in (("bitsandbytes-int8", 8), ("int4", 5)):
        module = pack(plain(3072), precision, batch_invariant=True)
        assert module.num_bytes == pytest.approx(num_weights * bits / 8, rel=0.02)
