"""Compiles kernels for the Arm CPUs that qemu emulates. Each kernel is compiled once in a process."""

from collections.abc import Callable
from dataclasses import dataclass

from inference_server.kernels.emit.module import Emit, Target, compile_kernel
from inference_server.kernels.isa.instruction_set import InstructionSet
from inference_server.kernels.isa.neon import Neon
from inference_server.kernels.isa.neon_bf16 import NeonBf16
from inference_server.kernels.isa.neon_dotprod import NeonDotprod

LINUX, MACOS = "aarch64-unknown-linux-gnu", "arm64-apple-darwin"


@dataclass(frozen=True)
class ArmCpu:
    """An instruction set, and qemu's name of a CPU that has it but none of those above it."""

    isa: InstructionSet
    emulated: str

    def target(self, triple: str = LINUX) -> Target:
        """Return the least CPU with the instruction set, on a platform."""
        return Target(triple, self.isa.llvm_cpu, self.isa.llvm_features)


# qemu 7.2, of Debian 12, has bfloat16 only in its CPU with everything that it can emulate.
CPUS = (ArmCpu(Neon(), "cortex-a72"), ArmCpu(NeonDotprod(), "cortex-a76"), ArmCpu(NeonBf16(), "max"))

_objects: dict[tuple[str, ArmCpu], bytes] = {}


def compiled(name: str, make: Callable[[], Emit], cpu: ArmCpu) -> bytes:
    """Return the object file of the kernel `name`. The first call for a CPU compiles what `make` returns."""
    if (name, cpu) not in _objects:
        _objects[name, cpu] = compile_kernel(make(), cpu.isa, cpu.target())
    return _objects[name, cpu]
