"""The int8 product in Triton's interpreter gives the results of float32, in all tilings and shapes."""

import pytest
import torch

from inference_server.gpu import ops
from inference_server.gpu.kernels import int8_linear, int8_row_by_row
from inference_server.gpu.kernels.int8_tiling import choose_num_splits, choose_tiling
from tests.inference_server.gpu.kernels.products import random_product, relative_error, rounding

DTYPES = (torch.float16, torch.bfloat16)
# The in_features of Llama 2 7B, Llama 3.1 8B, Qwen 3 0.6B to 32B and the default model, in attention and feed-forward layers.
MODEL_INPUTS = (576, 1024, 1536, 2048, 2560, 3072, 4096, 5120, 6144, 9728, 11008, 12288, 14336, 17408, 25600)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_rows", [1, 3, 16, 33, 64])
def test_products_equal_those_of_float32_but_for_the_rounding_of_the_result(num_rows: int, dtype: torch.dtype) -> None:
    product = random_product(num_rows, 75, 320, dtype)
    actual = ops.int8_linear(product.x, product.codes, product.scales, None)
    assert actual.dtype == dtype
    assert relative_error(actual, product.expected()) < rounding(dtype)


@pytest.mark.parametrize("shape", [(40, 333), (1, 16), (7, 1)])
@pytest.mark.parametrize("num_rows", [2, 40])
def test_shapes_need_not_be_multiples_of_a_tile(num_rows: int, shape: tuple[int, int]) -> None:
    product = random_product(num_rows, *shape)
    actual = ops.int8_linear(product.x, product.codes, product.scales, None)
    assert relative_error(actual, product.expected()) < rounding(torch.float16)


@pytest.mark.parametrize(("num_rows", "num_inputs"), [(1, 320), (64, 320), (17, 1024)])  # The last one is split.
def test_the_bias_is_added_after_the_scales(num_rows: int, num_inputs: int) -> None:
    product = random_product(num_rows, 33, num_inputs, has_bias=True)
    actual = ops.int8_linear(product.x, product.codes, product.scales, product.bias)
    assert relative_error(actual, product.expected()) < rounding(torch.float16)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_product_row_by_row_equals_that_of_float32(dtype: torch.dtype) -> None:
    product = random_product(3, 35, 700, dtype, has_bias=True)
    actual = int8_row_by_row.multiply_row_by_row(product.x, product.codes, product.scales, product.bias)
    assert relative_error(actual, product.expected()) < rounding(dtype)


@pytest.mark.parametrize(("few", "many"), [(1, 8), (9, 16), (17, 32), (33, 64)])
def test_the_number_of_rows_changes_no_bit_of_a_row_within_a_range(few: int, many: int) -> None:
    product = random_product(many, 20, 520)
    whole = ops.int8_linear(product.x, product.codes, product.scales, None)
    part = ops.int8_linear(product.x[:few].contiguous(), product.codes, product.scales, None)
    assert torch.equal(part, whole[:few])


def test_no_rows_give_an_empty_result() -> None:
    product = random_product(0, 32, 64)
    assert ops.int8_linear(product.x, product.codes, product.scales, None).shape == (0, 32)


def test_float32_activations_are_multiplied_in_float32() -> None:
    product = random_product(2, 32, 256, torch.float32)
    actual = ops.int8_linear(product.x, product.codes, product.scales, None)
    assert relative_error(actual, product.expected()) < 1e-5


@pytest.mark.parametrize(
    ("num_rows", "num_outputs", "num_inputs", "splits"),
    [
        (1, 4096, 4096, 1),  # 256 programs
        (1, 22016, 4096, 1),
        (16, 4096, 11008, 1),  # 128 programs of 132 are enough
        (32, 4096, 4096, 2),
        (64, 4096, 4096, 4),
        (64, 22016, 4096, 1),
        (64, 1024, 25600, 8),
        (64, 1024, 512, 2),  # no part has fewer than two steps
    ],
)
def test_inputs_are_split_only_where_there_are_too_few_programs(
    num_rows: int, num_outputs: int, num_inputs: int, splits: int
) -> None:
    tiling = choose_tiling(num_rows, num_outputs)
    assert choose_num_splits(tiling, num_outputs, num_inputs, 132) == splits


@pytest.mark.rehearsal
@pytest.mark.parametrize("num_inputs", MODEL_INPUTS)
@pytest.mark.parametrize(
    ("num_rows", "dtype"), [*((num_rows, torch.float16) for num_rows in (1, 3, 16, 33, 64)), (16, torch.bfloat16)]
)
@pytest.mark.parametrize("multiprocessors", [1, 132])  # Without and with splits.
def test_products_of_the_models_equal_those_of_float32(
    num_rows: int, dtype: torch.dtype, num_inputs: int, multiprocessors: int
) -> None:
    """Compute 80 outputs only: the interpreter needs a second for each million codes."""
    product = random_product(num_rows, 80, num_inputs, dtype)
    actual = int8_linear.multiply(product.x, product.codes, product.scales, None, multiprocessors)
    assert relative_error(actual, product.expected()) < rounding(dtype)
