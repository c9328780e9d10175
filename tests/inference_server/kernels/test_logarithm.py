"""The logarithm of the code generator, on every instruction set of this CPU."""

from struct import Struct

import pytest
import torch

from inference_server.kernels.emit.elements import log
from inference_server.kernels.isa import choice
from tests.support.kernels.compiled_kernels import load


def log_of_every(code, block):
    x, out, num_bytes = (code.argument(block, index) for index in range(3))
    with code.loop(0, num_bytes, 64) as offset:
        code.store(log(code, code.load_floats(x + offset)), out + offset)


@pytest.mark.parametrize("isa", choice.available(), ids=lambda isa: isa.name)
def test_the_logarithm_is_within_two_units_in_the_last_place(isa):
    bits = torch.arange(0x00800000, 0x7F800000, 9_973, dtype=torch.int32)
    near_one = torch.arange(0x3F7F0000, 0x3F810000, dtype=torch.int32)
    x = torch.cat([bits, near_one, torch.tensor([0x00800000, 0x3F800000, 0x7F7FFFFF], dtype=torch.int32)])
    x = x[: len(x) // 16 * 16].view(torch.float32)
    out = torch.empty_like(x)
    load(log_of_every, isa)(Struct("3q").pack(x.data_ptr(), out.data_ptr(), 4 * len(x)))
    exact = x.double().log()
    unit = torch.nextafter(exact.float().abs(), torch.tensor(torch.inf)) - exact.float().abs()
    assert ((out - exact).abs() <= 2 * unit).all()
