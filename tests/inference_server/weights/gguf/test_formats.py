"""The number formats of GGUF files: the weights of gguf's own functions, exactly, and int4 codes without a loss."""

import gguf
import numpy as np
import pytest
import torch

from inference_server.cpu.linear.integer_weights import rounded_like_bitsandbytes, rounded_to_int8
from inference_server.cpu.linear.panels import PanelBackend
from inference_server.kernels.isa.choice import chosen
from inference_server.kernels.jit import arguments
from inference_server.kernels.jit.kernel import kernel
from inference_server.kernels.linear import stored, stored_int4
from inference_server.weights.gguf.formats import format_of
from tailrace_shared.config_errors import ConfigurationError
from tests.support.models.gguf_files import random_blocks

BLOCKS = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS"]
NEEDS_KERNELS = pytest.mark.skipif(chosen() is None, reason="this CPU has no linear kernels")


def number(kind):
    return int(gguf.GGMLQuantizationType[kind])


@pytest.mark.parametrize("kind", BLOCKS)
def test_weights_are_bit_identical_to_those_of_gguf(kind):
    rows = random_blocks(kind, 5, 3)
    found = format_of(number(kind)).weights(torch.from_numpy(rows)).numpy()
    wanted = gguf.dequantize(rows, gguf.GGMLQuantizationType[kind])
    assert found.shape == wanted.shape
    assert np.array_equal(found.view(np.uint32), wanted.view(np.uint32))


@pytest.mark.parametrize("kind", ["F16", "BF16", "F32"])
def test_float_formats_are_read_exactly(kind):
    weights = np.random.default_rng(0).normal(size=(3, 40)).astype(np.float32)
    rows = torch.from_numpy(gguf.quantize(weights, gguf.GGMLQuantizationType[kind]).view(np.uint8))
    wanted = gguf.dequantize(rows.numpy().view(np.float16), gguf.GGMLQuantizationType.F16) if kind == "F16" else None
    found = format_of(number(kind)).weights(rows).numpy()
    assert np.allclose(found, weights, rtol=0.01)
    assert wanted is None or np.array_equal(found, wanted)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q4_K"])
def test_int4_codes_keep_the_weights_up_to_the_rounding_of_scales_to_float16(kind):
    rows = torch.from_numpy(random_blocks(kind, 4, 2))
    form = format_of(number(kind))
    found, wanted = form.int4(rows).dequantize(), form.weights(rows)
    scale = wanted.abs().amax()
    assert torch.allclose(found, wanted, rtol=0, atol=float(scale) * (0 if kind != "Q4_K" else 2**-10))


def test_a_format_that_cannot_be_read_is_named_with_those_that_can():
    with pytest.raises(ConfigurationError, match="^a tensor has the number format Q8_K, .* F32, F16, Q4_0, Q4_1, "):
        format_of(number("Q8_K"))
    with pytest.raises(ConfigurationError, match="number format number 77, "):
        format_of(77)


def test_the_kernels_formats_are_those_that_are_named_without_importing_them():
    assert set(stored.FORMATS) == set(arguments.STORED_FORMATS)
    assert set(stored_int4.READERS) == set(arguments.STORED_INT4_FORMATS)
    assert all(format_of(number(name.upper())).block_bytes == size for name, (_, size, _) in stored.FORMATS.items())


def panels(weight, kind, is_gated=False):
    """Return weights as torch orders them in panels."""
    from inference_server.cpu.linear.kernel_linear import LinearKind

    return PanelBackend().pack(weight, None, LinearKind(kind, is_gated=is_gated)).packed


@NEEDS_KERNELS
@pytest.mark.parametrize("name", stored.FORMATS)
def test_the_kernels_write_what_torch_computes(name):
    rows = torch.from_numpy(random_blocks(name.upper(), 64, 8 // stored.FORMATS[name][2]))
    rows[7] = 0
    weights = format_of(number(name.upper())).weights(rows)
    addresses = rows.data_ptr() + torch.arange(64) * rows.stride(0)
    for suffix, rounded in {"int8": rounded_to_int8, "int8-bitsandbytes": rounded_like_bitsandbytes}.items():
        wanted = panels(rounded(weights), "int8")
        codes, scales = torch.zeros_like(wanted.weights), torch.zeros(64)
        kernel(f"{name}-{suffix}").run(arguments.stored(addresses, codes, scales, 4, 8), 4, 1 << 20)
        assert torch.equal(codes, wanted.weights)
        assert torch.equal(scales, wanted.scales)
    wanted = panels(weights.bfloat16(), "bf16")
    found = torch.zeros_like(wanted.weights)
    kernel(f"{name}-bf16").run(arguments.stored(addresses, found, None, 4, 8), 4, 1 << 20)
    assert torch.equal(found, wanted.weights)
    for dtype in (torch.float32, torch.bfloat16):
        found = torch.zeros(64, 256, dtype=dtype)
        kernel(f"{name}-rows", dtype is torch.bfloat16).run(
            arguments.stored(addresses, found, None, 64, 8), 64, 1 << 20
        )
        assert torch.equal(found, weights.to(dtype))


@NEEDS_KERNELS
@pytest.mark.parametrize("is_gated", [False, True])
@pytest.mark.parametrize("name", stored_int4.READERS)
def test_the_kernels_copy_4_bit_codes_as_torch_orders_them(name, is_gated):
    num_groups = 3 * stored.FORMATS[name][2]
    rows = torch.from_numpy(random_blocks(name.upper(), 64 if is_gated else 40, 3))
    rows[7] = 0
    form = format_of(number(name.upper()))
    wanted = panels(form.int4(rows), "int4", is_gated).weights
    addresses = torch.zeros(64, dtype=torch.int64)
    addresses[: len(rows)] = rows.data_ptr() + torch.arange(len(rows)) * rows.stride(0)
    if is_gated:  # 16 outputs of gate, then 16 of up
        addresses = addresses.view(2, -1, 16).transpose(0, 1).flatten()
    found = torch.zeros_like(wanted)
    kernel(f"{name}-int4").run(arguments.stored(addresses, found, None, 4, num_groups), 4, 1 << 20)
    assert torch.equal(found, wanted)


@NEEDS_KERNELS
@pytest.mark.parametrize("kind", ["int8", "bf16"])
def test_rows_of_padding_are_zeros(kind):
    rows = torch.from_numpy(random_blocks("Q4_1", 40, 8))
    weights = format_of(number("Q4_1")).weights(rows)
    wanted = panels(rounded_to_int8(weights) if kind == "int8" else weights.bfloat16(), kind)
    addresses = torch.zeros(64, dtype=torch.int64)
    addresses[:40] = rows.data_ptr() + torch.arange(40) * rows.stride(0)
    found, scales = torch.zeros_like(wanted.weights), torch.zeros(64)
    kernel(f"q4_1-{kind}").run(arguments.stored(addresses, found, scales if kind == "int8" else None, 4, 8), 4, 0)
    assert torch.equal(found, wanted.weights)
