"""Compiles a kernel: generates its LLVM module for an instruction set, and translates it to an object file."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from llvmlite import binding, ir

from inference_server.kernels.emit.code import Code
from inference_server.kernels.emit.types import INT64
from inference_server.kernels.emit.values import Int

if TYPE_CHECKING:
    from inference_server.kernels.isa.instruction_set import InstructionSet

ENTRY = "tailrace_kernel"  # the function's name in the object file: void tailrace_kernel(int64 address of the block)
Emit = Callable[[Code, Int], None]


@dataclass(frozen=True, slots=True)
class Target:
    """A CPU to compile for.

    Attributes:
        triple: LLVM's name of the platform, for example "x86_64-unknown-linux-gnu".
        cpu: LLVM's name of the CPU.
        features: LLVM's features in addition to those of the CPU, for example "+avx2,-avx512f".
    """

    triple: str
    cpu: str
    features: str


def generate(emit: Emit, isa: "InstructionSet", triple: str) -> str:
    """Return the LLVM IR of a kernel as text.

    Args:
        emit: Emits the kernel from a `Code` and the address of the argument block.
        isa: The instruction set.
        triple: The platform.
    """
    module = ir.Module(name="kernel")
    module.triple = triple
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [INT64]), ENTRY)
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    block = Int(builder, function.args[0])
    code = Code(builder, isa, block)
    emit(code, block)
    code.builder.ret_void()
    for each in module.functions:
        if not each.is_declaration:
            for name, value in isa.function_attributes().items():
                # llvmlite's own method rejects attributes that are not in its list.
                set.add(each.attributes, f'"{name}"="{value}"')
    return str(module)


def compile_kernel(emit: Emit, isa: "InstructionSet", target: Target) -> bytes:
    """Return a relocatable object file with a kernel's machine code, without external symbols.

    Raises:
        RuntimeError: LLVM rejects the generated code.
    """
    return bytes(target_machine(target).emit_object(_optimised(emit, isa, target)))


def assembly(emit: Emit, isa: "InstructionSet", target: Target) -> str:
    """Return a kernel's machine code as assembly, for tests and benchmarks."""
    return str(target_machine(target).emit_assembly(_optimised(emit, isa, target)))


def _optimised(emit: Emit, isa: "InstructionSet", target: Target) -> Any:
    machine = target_machine(target)
    module = binding.parse_assembly(generate(emit, isa, target.triple))
    module.verify()
    options = binding.create_pipeline_tuning_options()
    options.speed_level = 3
    # Kernels already use vectors, and are unrolled where that helps. These passes would only make compilation slower.
    options.loop_vectorization = options.slp_vectorization = options.loop_unrolling = False
    passes = binding.create_pass_builder(machine, options)
    passes.getModulePassManager().run(module, passes)
    return module


@cache
def target_machine(target: Target) -> Any:
    """Return LLVM's target machine. It can also load object files if the target describes this process."""
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    is_x86 = target.triple.startswith("x86")
    return binding.Target.from_triple(target.triple).create_target_machine(
        cpu=target.cpu,
        features=target.features,
        opt=3,
        reloc="static" if is_x86 else "pic",
        codemodel="jitdefault" if is_x86 else "small",
        jit=is_x86,
    )
