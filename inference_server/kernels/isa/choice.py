"""Chooses the instruction set of the kernels: the best one of this CPU, or the one that TAILRACE_CPU_FEATURES names.

The choice is stored in the environment variable only. settings/models.py documents it, and checks its value with `named`
when the server starts. Importing this module imports neither torch nor llvmlite.
"""

import os
from functools import cache
from typing import TYPE_CHECKING

from inference_server.kernels.isa import cpu

if TYPE_CHECKING:
    from inference_server.kernels.emit.module import Target
    from inference_server.kernels.isa.instruction_set import InstructionSet

VARIABLE = "TAILRACE_CPU_FEATURES"
NONE = "none"  # the variable's value with which torch's operations replace the kernels
# The values that TAILRACE_CPU_FEATURES may have.
NAMES = (
    "amx",
    "avx512-bf16",
    "avx512-vnni",
    "avx512",
    "avx-vnni",
    "avx2",
    "neon-bf16",
    "neon-dotprod",
    "neon",
    NONE,
)


@cache
def available() -> "tuple[InstructionSet, ...]":
    """Return the instruction sets that this CPU can run, best first; none if llvmlite cannot be used.

    If several have the same name, only the first of them is returned.
    """
    try:
        features = cpu.llvm_features()
        architecture = "x86_64" if cpu.is_x86() else "aarch64"
        from inference_server.kernels.isa.table import INSTRUCTION_SETS
    except (ImportError, OSError, RuntimeError):  # llvmlite is not installed, or does not support this system
        return ()
    found: dict[str, InstructionSet] = {}
    for each in INSTRUCTION_SETS:
        if (
            each.architecture == architecture
            and all(features.get(name) for name in each.required)
            and (each.name != "amx" or cpu.has_amx())
        ):
            found.setdefault(each.name, each)
    return tuple(found.values())


def chosen(name: str | None = None) -> "InstructionSet | None":
    """Return the instruction set to compile for; None if torch's operations replace the kernels.

    Args:
        name: Name of the instruction set; by default the value of TAILRACE_CPU_FEATURES. If both are missing, the best
            instruction set is chosen.

    Raises:
        ValueError: The name is unknown, or this CPU lacks the instruction set. The message lists the possible names.
    """
    name = name or os.environ.get(VARIABLE, "").strip().lower()
    if not name:
        return next(iter(available()), None)
    try:
        return named(name)
    except ValueError as reason:
        raise ValueError(f"{VARIABLE}={name}: {reason}") from None


def named(name: str) -> "InstructionSet | None":
    """Return the instruction set for a value of TAILRACE_CPU_FEATURES; None for "none".

    Raises:
        ValueError: The name is unknown, or this CPU lacks the instruction set. The message is a clause without the name.
    """
    if name == NONE:
        return None
    for each in available():
        if each.name == name:
            return each
    if not available():
        raise ValueError(f"only {NONE} is possible, because {_missing_kernels()}")
    possible = ", ".join([*(each.name for each in available()), NONE])
    problem = "this CPU lacks this instruction set" if name in NAMES else "there is no instruction set of this name"
    raise ValueError(f"{problem} (possible here: {possible})")


def obstacle() -> str | None:
    """Return the reason why kernels cannot run here, as a clause; None if they can.

    Raises:
        ValueError: See `chosen`.
    """
    if chosen() is not None:
        return None
    return f"{VARIABLE}={NONE} switches them off" if available() else _missing_kernels()


def _missing_kernels() -> str:
    """Return the reason why `available` is empty, as a clause."""
    try:
        is_x86 = cpu.is_x86()
    except ImportError:
        return "llvmlite, which compiles the kernels, is not installed"
    except (OSError, RuntimeError) as error:  # llvmlite's library cannot be loaded, or does not support this system
        return f"llvmlite, which compiles the kernels, cannot be used ({error})"
    return f"this CPU lacks {'AVX2 and FMA' if is_x86 else 'NEON'}"


def target(isa: "InstructionSet") -> "Target":
    """Return the CPU to compile for: the baseline of the instruction set, the simplest CPU that has it.

    Kernels compiled for exactly this CPU are no faster (AMD EPYC, Zen 4: equal within 3%). Machine code for the baseline
    can be compiled in advance for other machines.
    """
    from inference_server.kernels.emit.module import Target

    return Target(cpu.llvm_triple(), isa.llvm_cpu, isa.llvm_features)
