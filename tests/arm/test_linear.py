"""The kernels of linear layers on emulated Arm CPUs, against exact products."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.support.panel_layers import FORMATS, Layer, layer

ROWS = [1, 3, 8, 13, 33]
EVERY_FORMAT = pytest.mark.parametrize("name", FORMATS)

Run = Callable[[Layer, Tensor], Tensor]


@pytest.fixture
def run(name, emulator, call) -> Run:
    """Return a function that runs the kernel of the format `name`."""

    def run_kernel(module: Layer, x: Tensor) -> Tensor:
        return module.run(x, emulator.place, lambda block: call(name, lambda: FORMATS[name].emit, block))

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


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_a_row_with_an_infinity_becomes_nan_and_no_other(name, cpu, run):
    module = layer(name, cpu.isa)
    x = module.random_rows(3)
    x[1, 5] = float("inf")
    found = run(module, x)
    assert found[1].isnan().all()
    assert not found[[0, 2]].isnan().any()
