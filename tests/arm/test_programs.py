"""Kernel programs on emulated Arm CPUs, and object files for another operating system."""

import struct

import pytest
import torch

from inference_server.kernels import reference
from inference_server.kernels.emit.module import compile_kernel
from inference_server.kernels.jit import arguments
from tests.support.arm.compiled import MACOS, compiled, emitter

_MACH_O_64 = b"\xcf\xfa\xed\xfe"


def test_a_program_runs_its_kernels_in_order_each_time(emulator, cpu, place, call):
    x, weight = place(torch.randn(5, 64) * 3), place(torch.randn(64))
    between, out = place(torch.zeros_like(x)), place(torch.zeros_like(x))
    pairs = []
    for source, target in ((x, between), (between, out)):
        block = arguments.rms_norm(source, weight, target, 1e-5)
        copy = place(torch.frombuffer(bytearray(block), dtype=torch.int64))
        pairs.append((emulator.load(compiled(cpu, "rms_norm", False)), copy.data_ptr()))
    calls = place(torch.tensor(pairs))
    for _ in range(2):  # the first run must leave the counters as it found them
        between.zero_()
        out.zero_()
        call(struct.pack(f"6q{arguments.BLOCK_BYTES - 48}x", 0, 0, 0, calls.data_ptr(), len(pairs), 0), "program")
        wanted = reference.rms_norm(reference.rms_norm(x, weight, 1e-5), weight, 1e-5)
        torch.testing.assert_close(out, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["linear-int8", "linear-bf16", "sample_rows"])
def test_kernels_compile_for_macos(cpu, name):
    assert compile_kernel(emitter(name), cpu.isa, cpu.target(MACOS)).startswith(_MACH_O_64)
