"""The kernels for rows and decode attention on every instruction set of this CPU, against torch's operations."""

import pytest
import torch

from inference_server.kernels import ops, reference
from inference_server.kernels.jit import arguments
from inference_server.kernels.jit.kernel import kernel
from tests.inference_server.kernels.test_ops import DTYPES, assert_attends, assert_close, make_cache, ragged

pytestmark = pytest.mark.usefixtures("instruction_set")


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@DTYPES
def test_a_sum_is_stored_and_its_norm_is_that_of_torch(dtype: torch.dtype) -> None:
    for num_rows, width in ((1, 16), (3, 576)):
        x, delta, weight = (torch.randn(rows, width).to(dtype) * 3 for rows in (num_rows, num_rows, 1))
        total, normed = x + delta, torch.empty_like(x)
        function = kernel("add_rms_norm", dtype is torch.bfloat16)
        assert function is not None
        function.run(arguments.add_rms_norm(x, delta, weight[0], normed, 1e-5), num_rows, 0)
        assert torch.equal(x, total)
        assert_close(normed, reference.rms_norm(total, weight[0], 1e-5))
        assert_close(ops.rms_norm(x, weight[0], 1e-5), reference.rms_norm(x, weight[0], 1e-5))


@DTYPES
def test_a_sum_may_have_a_factor(dtype: torch.dtype) -> None:
    x, delta, weight = (torch.randn(rows, 64).to(dtype) for rows in (3, 3, 1))
    total, normed = (x.float() + 0.22 * delta.float()).to(dtype), torch.empty_like(x)
    function = kernel("add_rms_norm", dtype is torch.bfloat16)
    assert function is not None
    function.run(arguments.add_rms_norm(x, delta, weight[0], normed, 1e-5, 0.22), 3, 0)
    assert_close(x, total)
    assert_close(normed, reference.rms_norm(total, weight[0], 1e-5))


@DTYPES
@pytest.mark.parametrize("width", [64, 80])
def test_heads_are_normalised_before_they_are_rotated(width: int, dtype: torch.dtype) -> None:
    qkv, angles = torch.randn(3, 15 * width).to(dtype) * 5, torch.randn(3, width)
    cos, sin, rows = angles.cos().to(dtype), angles.sin().to(dtype), torch.tensor([70, 3, 20])
    norms = arguments.HeadNorms(torch.randn(width).to(dtype), torch.randn(width).to(dtype), 1e-6)
    ours, plain = (torch.zeros(2, 5, 16, 3, width, dtype=torch.bfloat16) for _ in range(2))
    wanted = reference.rope_and_write(qkv, cos, sin, plain[0], plain[1], rows, 9, 3, norms)
    assert_close(ops.rope_and_write(qkv, cos, sin, ours[0], ours[1], rows, 9, 3, norms), wanted)
    assert_close(ours, plain)


@DTYPES
@pytest.mark.parametrize("width", [64, 80])
def test_heads_are_rotated_and_written(width: int, dtype: torch.dtype) -> None:
    qkv, angles = torch.randn(3, 15 * width).to(dtype), torch.randn(3, width)
    cos, sin, rows = angles.cos().to(dtype), angles.sin().to(dtype), torch.tensor([70, 3, 20])
    ours, plain = (torch.zeros(2, 5, 16, 3, width, dtype=torch.bfloat16) for _ in range(2))
    found = ops.rope_and_write(qkv, cos, sin, ours[0], ours[1], rows, 9, 3)
    assert_close(found, reference.rope_and_write(qkv, cos, sin, plain[0], plain[1], rows, 9, 3))
    assert_close(ours, plain)


@DTYPES
@pytest.mark.parametrize(
    ("group", "width", "value_width", "window", "softcap"),
    [(3, 64, 64, None, None), (1, 16, 16, 17, None), (7, 80, 48, 100, 5.0)],
)
def test_sequences_attend(
    group: int, width: int, value_width: int, window: int | None, softcap: float | None, dtype: torch.dtype
) -> None:
    cache = make_cache(ragged(7), torch.bfloat16, kv_heads=2, width=width, value_width=value_width)
    query = torch.randn(7, 2 * group, width).to(dtype)
    assert_attends(query, cache, scaling=0.5, sliding_window=window, softcap=softcap)


def test_sequences_attend_to_sinks(instruction_set: str) -> None:
    cache = make_cache(ragged(7), torch.bfloat16, kv_heads=2)
    sinks = torch.tensor([-20.0, 0.0, 3.0, 20.0, 0.5, -1.0])
    assert_attends(torch.randn(7, 6, 64), cache, scaling=0.5, sliding_window=100, sinks=sinks)


@DTYPES
@pytest.mark.usefixtures("num_threads")
def test_a_sequence_has_the_same_bits_alone_and_in_a_batch(dtype: torch.dtype) -> None:
    cache = make_cache(ragged(7), torch.bfloat16)
    query = torch.randn(7, 9, 64).to(dtype)
    together = ops.paged_decode_attention(query, cache.keys, cache.values, cache.table, cache.lengths, 0.1)
    for row in range(7):
        one = slice(row, row + 1)
        alone = ops.paged_decode_attention(
            query[one], cache.keys, cache.values, cache.table[one], cache.lengths[one], 0.1
        )
        assert torch.equal(alone[0], together[row])
