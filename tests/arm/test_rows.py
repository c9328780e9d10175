"""The kernels that work on single rows, on emulated Arm CPUs, against torch."""

import pytest
import torch

from inference_server.kernels import reference
from inference_server.kernels.jit import arguments
from tests.inference_server.kernels.test_ops import DTYPES, assert_close


@DTYPES
@pytest.mark.parametrize(("num_rows", "width"), [(1, 16), (7, 576)])
def test_rms_norm_is_that_of_torch(num_rows, width, dtype, place, call):
    x, weight = place(torch.randn(num_rows, width).to(dtype) * 3), place(torch.randn(width).to(dtype))
    out = place(torch.full_like(x, float("nan")))
    call(arguments.rms_norm(x, weight, out, 1e-5), "rms_norm", dtype == torch.bfloat16)
    assert_close(out, reference.rms_norm(x, weight, 1e-5))


@DTYPES
def test_add_rms_norm_adds_and_norms(dtype, place, call):
    x, delta, weight = (place(torch.randn(shape).to(dtype)) for shape in ((5, 64), (5, 64), (64,)))
    out, added = place(torch.full_like(x, float("nan"))), x + delta
    call(arguments.add_rms_norm(x, delta, weight, out, 1e-5), "add_rms_norm", dtype == torch.bfloat16)
    assert torch.equal(x, added)
    assert_close(out, reference.rms_norm(added, weight, 1e-5))


@DTYPES
def test_add_rms_norm_multiplies_what_it_adds(dtype, place, call):
    x, delta, weight = (place(torch.randn(shape).to(dtype)) for shape in ((5, 64), (5, 64), (64,)))
    out, added = place(torch.full_like(x, float("nan"))), (x.float() + 0.22 * delta.float()).to(dtype)
    call(arguments.add_rms_norm(x, delta, weight, out, 1e-5, 0.22), "add_rms_norm", dtype == torch.bfloat16)
    assert_close(x, added)
    assert_close(out, reference.rms_norm(added, weight, 1e-5))


@DTYPES
def test_silu_mul_is_that_of_torch(dtype, place, call):
    gate_up = place(torch.randn(7, 96).to(dtype) * 8)
    out = place(torch.full((7, 48), float("nan"), dtype=dtype))
    call(arguments.silu_mul(gate_up, out), "silu_mul", dtype == torch.bfloat16)
    assert_close(out, reference.silu_mul(gate_up))


@DTYPES
def test_silu_mul_handles_huge_values_and_propagates_nan(dtype, place, call):
    gate = torch.tensor([-3e38, -200.0, -90.0, 0.0, 90.0, 200.0, 3e38, float("nan")] * 2).to(dtype)
    gate_up = place(torch.cat([gate, torch.ones(16).to(dtype)])[None])
    out = place(torch.zeros(1, 16, dtype=dtype))
    call(arguments.silu_mul(gate_up, out), "silu_mul", dtype == torch.bfloat16)
    torch.testing.assert_close(out, reference.silu_mul(gate_up), equal_nan=True, rtol=1e-2, atol=1e-6)


@DTYPES
@pytest.mark.parametrize("has_float32_angles", [True, False])
@pytest.mark.parametrize("width", [64, 80])
def test_rope_rotates_and_writes_like_torch(dtype, has_float32_angles, width, place, call):
    heads, kv_heads, block_size, num_rows = 9, 3, 16, 7
    qkv, theta = torch.randn(num_rows, (heads + 2 * kv_heads) * width).to(dtype), torch.randn(num_rows, width)
    angles = torch.float32 if has_float32_angles else dtype
    rows = torch.randperm(5 * block_size)[:num_rows]
    cache = torch.full((2, 5, block_size, kv_heads, width), 7.0, dtype=dtype)
    query = torch.full((num_rows, heads, width), float("nan"), dtype=dtype)
    given = [place(each) for each in (qkv, theta.cos().to(angles), theta.sin().to(angles), *cache.clone(), rows, query)]
    types = (dtype, angles, dtype)
    call(arguments.rope_and_write(*given), "rope_and_write", *(each == torch.bfloat16 for each in types))
    wanted = reference.rope_and_write(*given[:3], *cache, rows, heads, kv_heads)
    assert_close(given[6], wanted)
    assert_close(given[3], cache[0])
    assert torch.equal(given[4], cache[1])


@DTYPES
def test_heads_are_normalised_before_they_are_rotated(dtype, place, call):
    heads, kv_heads, width, num_rows = 9, 3, 80, 7
    qkv, theta = torch.randn(num_rows, (heads + 2 * kv_heads) * width).to(dtype) * 5, torch.randn(num_rows, width)
    norms = arguments.HeadNorms(*(place(torch.randn(width).to(dtype)) for _ in range(2)), 1e-6)
    cache = torch.zeros(2, 5, 16, kv_heads, width, dtype=dtype)
    rows, query = torch.randperm(80)[:num_rows], torch.full((num_rows, heads, width), float("nan"), dtype=dtype)
    given = [place(each) for each in (qkv, theta.cos().to(dtype), theta.sin().to(dtype), *cache.clone(), rows, query)]
    wanted = reference.rope_and_write(*given[:3], *cache, rows, heads, kv_heads, norms)
    call(arguments.rope_and_write(*given, norms), "norm_rope_and_write", *[dtype == torch.bfloat16] * 3)
    assert_close(given[6], wanted)
    assert_close(given[3], cache[0])
    assert torch.equal(given[4], cache[1])
