"""Compiles and runs a kernel for any instruction set of this CPU, without the cache of kernels."""

import ctypes
from functools import cache
from typing import Any

import torch
from llvmlite import binding
from torch import Tensor

from inference_server.kernels.emit.module import ENTRY, Emit, Target, compile_kernel, target_machine
from inference_server.kernels.isa import choice
from inference_server.kernels.isa.instruction_set import InstructionSet

_engines: list[Any] = []  # own the machine code


def load(emit: Emit, isa: InstructionSet, target: Target | None = None) -> Any:
    """Return a kernel as a function of its argument block. `target`: by default that of the instruction set."""
    target = target or choice.target(isa)
    engine = binding.create_mcjit_compiler(binding.parse_assembly(""), target_machine(target))
    engine.add_object_file(binding.ObjectFileRef.from_data(compile_kernel(emit, isa, target)))
    engine.finalize_object()
    _engines.append(engine)
    function = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(engine.get_function_address(ENTRY))

    def run(block: bytes) -> None:
        function((ctypes.c_int64 * (len(block) // 8)).from_buffer_copy(block))

    return run


@cache
def instruction_set_names() -> list[str]:
    """Return names of this CPU's instruction sets: one for each way to multiply bfloat16, and for each vector width."""
    return list({(each.multiplies_bf16, each.lanes): each.name for each in choice.available()}.values())


def aligned(tensor: Tensor) -> Tensor:
    """Return a copy that begins at a multiple of 64 bytes, as packed weights and workspaces do."""
    memory = torch.empty(tensor.nbytes + 64, dtype=torch.uint8)
    place = memory[-memory.data_ptr() % 64 :][: tensor.nbytes].view(tensor.dtype).view(tensor.shape)
    return place.copy_(tensor)
