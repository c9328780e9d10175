"""Compiles kernels for the Arm CPUs that qemu emulates. Each kernel is compiled once in a process."""

from dataclasses import dataclass
from functools import cache

from inference_server.kernels.emit.module import Emit, Target, compile_kernel
from inference_server.kernels.isa.instruction_set import InstructionSet
from inference_server.kernels.isa.neon import Neon
from inference_server.kernels.isa.neon_bf16 import NeonBf16
from inference_server.kernels.isa.neon_dotprod import NeonDotprod
from inference_server.kernels.jit import kernel as kernels

LINUX, MACOS = "aarch64-unknown-linux-gnu", "arm64-apple-darwin"


@dataclass(frozen=True)
class ArmCpu:
    """An instruction set, and qemu's name of a CPU that has it but none of those above it."""

    isa: InstructionSet
    emulated: str

    def target(self, triple: str = LINUX) -> Target:
        """Return the baseline CPU of the instruction set, on a platform."""
        return Target(triple, self.isa.llvm_cpu, self.isa.llvm_features)


# qemu 7.2, of Debian 12, has bfloat16 only in its CPU with everything that it can emulate.
CPUS = (ArmCpu(Neon(), "cortex-a72"), ArmCpu(NeonDotprod(), "cortex-a76"), ArmCpu(NeonBf16(), "max"))


def emitter(name: str, *is_bf16: bool) -> Emit:
    """Return the function that emits a kernel of the server's table. Arguments as for jit.kernel.kernel."""
    emit: Emit = kernels.makers()[name](*is_bf16)
    return emit


@cache
def compiled(cpu: ArmCpu, name: str, *is_bf16: bool) -> bytes:
    """Return the object file of a kernel of the server's table for Linux. Arguments as for jit.kernel.kernel."""
    return compile_kernel(emitter(name, *is_bf16), cpu.isa, cpu.target())
