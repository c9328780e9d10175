"""The kernels of linear layers on emulated Arm CPUs, against exact products."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.support.kernels.panel_layers import FORMATS, INPUTS, Layer, layer

ROWS = [1, 3, 8, 13, 33]
EVERY_FORMAT = pytest.mark.parametrize("name", FORMATS)

Run = Callable[[Layer, Tensor], Tensor]


@pytest.fixture
def run(name, emulator, call) -> Run:
    """Return a function that runs the kernel of the format `name`."""

    def run_kernel(module: Layer, x: Tensor) -> Tensor:
        return module.run(x, emulator.place, lambda block: call(block, f"linear-{name}"))

    return run_kernel


@EVERY_FORMAT
def test_a_layer_is_the_plain_product(name, cpu, run):
    module = layer(name, cpu.isa)
    for num_rows in ROWS:
        x = module.random_rows(num_rows)
        expected = module.expected(x)
        error = (run(module, x).double() - expected).abs().max() / expected.abs().max()
        assert error < FORMATS[name].tolerance, num_rows  # false for NaN too


@EVERY_FORMAT
def test_a_rows_result_does_not_depend_on_the_other_rows(name, cpu, run):
    module = layer(name, cpu.isa)
    x = module.random_rows(13)
    together = run(module, x)
    for row in (0, 7, 12):
        assert torch.equal(run(module, x[row : row + 1])[0], together[row])


INTEGERS = pytest.mark.parametrize("name", ["int8", "int4"])


@INTEGERS
def test_a_row_with_an_infinity_becomes_nan_and_no_other(name, cpu, run):
    module = layer(name, cpu.isa)
    x = module.random_rows(3)
    x[1, 5] = float("inf")
    found = run(module, x)
    assert found[1].isnan().all()
    assert not found[[0, 2]].isnan().any()


@INTEGERS
@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_codes_and_digits_do_not_overflow(name, sign, cpu, run):
    largest = {"int8": 127 * sign, "int4": 15}[name]
    module = layer(name, cpu.isa, code=largest)
    x = torch.full((2, INPUTS), 8000.0 * sign)  # in units of the row scale: 63 * 128 - 64, the lowest low digit
    x[0], x[:, 0] = 1.0, 8064.0  # the row scale is 1, and row 0 has the largest high digit
    x[0, 1:] = 8064.0
    expected = module.expected(x)
    error = (run(module, x).double() - expected).abs().max() / expected.abs().max()
    assert error < 1e-5
