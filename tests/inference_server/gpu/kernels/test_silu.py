"""silu(gate) * up in Triton's interpreter gives the results of reference.py in float32."""

import pytest
import torch

from inference_server.gpu import ops, reference
from tests.inference_server.gpu.kernels.products import relative_error

DTYPES = (torch.float16, torch.bfloat16)
# The feed-forward sizes of the default model, Qwen 3 0.6B to 32B, Llama 2 7B and Llama 3.1 8B; and odd ones.
WIDTHS = (1536, 3072, 6144, 9728, 11008, 12288, 14336, 17408, 25600, 1, 1025)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", WIDTHS)
def test_products_equal_those_of_float32_but_for_two_roundings(width: int, dtype: torch.dtype) -> None:
    gate_up = torch.randn(2, 2 * width, generator=torch.Generator().manual_seed(width)).to(dtype)
    actual = ops.silu_mul(gate_up)
    assert actual.dtype == dtype
    assert relative_error(actual, reference.silu_mul(gate_up.float())) < torch.finfo(dtype).eps * 1.01
    torch.testing.assert_close(actual, reference.silu_mul(gate_up), rtol=torch.finfo(dtype).eps * 2, atol=1e-6)


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # Dividing by infinity gives the expected zero.
def test_large_gates_give_finite_products() -> None:
    gates = torch.tensor([-60000.0, -100.0, -20.0, 20.0, 100.0, 60000.0])
    gate_up = torch.cat([gates, torch.ones(6)])[None].half()
    torch.testing.assert_close(ops.silu_mul(gate_up), reference.silu_mul(gate_up))


def test_no_rows_give_an_empty_result() -> None:
    assert ops.silu_mul(torch.empty(0, 64, dtype=torch.float16)).shape == (0, 32)
