"""RMS norms in Triton's interpreter give the results of reference.py in float32."""

import pytest
import torch

from inference_server.gpu import ops, reference
from tests.inference_server.gpu.kernels.products import relative_error

DTYPES = (torch.float16, torch.bfloat16)
EPS = 1e-6
# The hidden sizes of the default model, Qwen 3 0.6B, 1.7B, 4B, Llama 2 7B and 3.1 8B, and Qwen 3 14B and 32B.
WIDTHS = (576, 1024, 2048, 2560, 4096, 5120)


def _numbers(*shape: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", WIDTHS)
def test_norms_equal_those_of_float32_but_for_two_roundings(width: int, dtype: torch.dtype) -> None:
    x, weight = _numbers(3, width, dtype=dtype, seed=1), _numbers(width, dtype=dtype, seed=2)
    actual = ops.rms_norm(x, weight, EPS)
    assert actual.dtype == dtype
    assert relative_error(actual, reference.rms_norm(x.float(), weight.float(), EPS)) < torch.finfo(dtype).eps * 1.01
    torch.testing.assert_close(actual, reference.rms_norm(x, weight, EPS), rtol=torch.finfo(dtype).eps * 2, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [576, 4096])
def test_the_sum_is_written_rounded_and_normalized_as_written(width: int, dtype: torch.dtype) -> None:
    hidden, delta = _numbers(2, width, dtype=dtype, seed=3), _numbers(2, width, dtype=dtype, seed=4)
    weight, total = _numbers(width, dtype=dtype, seed=5), hidden + delta
    actual = ops.add_rms_norm(hidden, delta, weight, EPS)
    assert torch.equal(hidden, total)
    expected = reference.rms_norm(total.float(), weight.float(), EPS)
    assert relative_error(actual, expected) < torch.finfo(dtype).eps * 1.01


@pytest.mark.parametrize("width", [1, 7, 33, 100])
def test_widths_need_not_be_powers_of_two(width: int) -> None:
    x, weight = _numbers(2, width, dtype=torch.float16, seed=6), torch.ones(width, dtype=torch.float16)
    expected = reference.rms_norm(x.float(), weight.float(), EPS)
    assert relative_error(ops.rms_norm(x, weight, EPS), expected) < 2e-3


def test_rows_may_be_slices_of_wider_rows() -> None:
    wide, weight = _numbers(4, 200, dtype=torch.float16, seed=7), torch.ones(96, dtype=torch.float16)
    assert torch.equal(
        ops.rms_norm(wide[:, 16:112], weight, EPS), ops.rms_norm(wide[:, 16:112].contiguous(), weight, EPS)
    )


def test_rows_of_zeros_stay_zeros() -> None:
    zeros, weight = torch.zeros(2, 64, dtype=torch.float16), torch.ones(64, dtype=torch.float16)
    assert torch.equal(ops.add_rms_norm(zeros.clone(), zeros, weight, EPS), zeros)


def test_no_rows_give_an_empty_result() -> None:
    empty, weight = torch.empty(0, 64, dtype=torch.float16), torch.ones(64, dtype=torch.float16)
    assert ops.add_rms_norm(empty, empty.clone(), weight, EPS).shape == (0, 64)
