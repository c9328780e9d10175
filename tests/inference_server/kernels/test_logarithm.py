"""The logarithm of the code generator, on every instruction set of this CPU."""

import ctypes

import pytest
import torch
from llvmlite import binding

from inference_server.kernels.emit.elements import log
from inference_server.kernels.emit.module import ENTRY, compile_kernel, target_machine
from inference_server.kernels.isa import choice


def log_of_every(code, block):
    x, out, num_bytes = (code.argument(block, index) for index in range(3))
    with code.loop(0, num_bytes, 64) as offset:
        code.store(log(code, code.load_floats(x + offset)), out + offset)


@pytest.mark.parametrize("isa", choice.available(), ids=lambda isa: isa.name)
def test_the_logarithm_is_within_two_units_in_the_last_place(isa):
    target = choice.target(isa)
    engine = binding.create_mcjit_compiler(binding.parse_assembly(""), target_machine(target))
    engine.add_object_file(binding.ObjectFileRef.from_data(compile_kernel(log_of_every, isa, target)))
    engine.finalize_object()
    bits = torch.arange(0x00800000, 0x7F800000, 9_973, dtype=torch.int32)
    near_one = torch.arange(0x3F7F0000, 0x3F810000, dtype=torch.int32)
    x = torch.cat([bits, near_one, torch.tensor([0x00800000, 0x3F800000, 0x7F7FFFFF], dtype=torch.int32)])
    x = x[: len(x) // 16 * 16].view(torch.float32)
    out = torch.empty_like(x)
    block = torch.tensor([x.data_ptr(), out.data_ptr(), 4 * len(x)])
    ctypes.CFUNCTYPE(None, ctypes.c_void_p)(engine.get_function_address(ENTRY))(block.data_ptr())
    exact = x.double().log()
    unit = torch.nextafter(exact.float().abs(), torch.tensor(torch.inf)) - exact.float().abs()
    assert ((out - exact).abs() <= 2 * unit).all()
