"""Lists the instruction sets that a run can be limited to, with the switches of Tailrace, torch, oneDNN and llama.cpp.

The names are those of TAILRACE_CPU_FEATURES. Nothing here changes the CPU: each program has its own switch.
"""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class InstructionSet:
    """An instruction set, and the values of the switches that keep programs at or below it."""

    name: str  # as in TAILRACE_CPU_FEATURES
    flags: frozenset[str]  # flags of /proc/cpuinfo that a CPU with this instruction set has
    aten: str  # ATEN_CPU_CAPABILITY, for torch's own operations
    onednn: str  # ONEDNN_MAX_CPU_ISA, for torch's matrix products; "" where oneDNN has no such limit
    # CMake's options that build llama.cpp for this instruction set; empty: llama.cpp's own choice.
    ggml: tuple[str, ...]

    def environment(self) -> dict[str, str]:
        """Return the environment variables that limit Tailrace and torch to this instruction set."""
        limits = {"TAILRACE_CPU_FEATURES": self.name, "ATEN_CPU_CAPABILITY": self.aten}
        return limits | ({"ONEDNN_MAX_CPU_ISA": self.onednn} if self.onednn else {})


_AVX2 = tuple(f"GGML_{name}=ON" for name in ("AVX", "AVX2", "FMA", "F16C", "BMI2"))
_AVX512 = (*_AVX2, "GGML_AVX512=ON")
_VNNI = (*_AVX512, "GGML_AVX512_VNNI=ON")
_AVX2_FLAGS = frozenset({"avx2", "fma", "f16c", "bmi2"})
_AVX512_FLAGS = _AVX2_FLAGS | {"avx512f", "avx512bw", "avx512dq", "avx512vl"}
_BF16_FLAGS = _AVX512_FLAGS | {"avx512_vnni", "avx512_bf16"}


def _set(name: str, flags: Collection[str], aten: str, onednn: str, ggml: tuple[str, ...] = ()) -> InstructionSet:
    return InstructionSet(name=name, flags=frozenset(flags), aten=aten, onednn=onednn, ggml=ggml)


# The instruction sets, the best one first.
INSTRUCTION_SETS = (
    _set("amx", _BF16_FLAGS | {"amx_tile", "amx_int8", "amx_bf16"}, "avx512", "AVX512_CORE_AMX"),
    _set("avx512-bf16", _BF16_FLAGS, "avx512", "AVX512_CORE_BF16", (*_VNNI, "GGML_AVX512_BF16=ON")),
    _set("avx512-vnni", _AVX512_FLAGS | {"avx512_vnni"}, "avx512", "AVX512_CORE_VNNI", _VNNI),
    _set("avx512", _AVX512_FLAGS, "avx512", "AVX512_CORE", _AVX512),
    _set("avx-vnni", _AVX2_FLAGS | {"avx_vnni"}, "avx2", "AVX2_VNNI", (*_AVX2, "GGML_AVX_VNNI=ON")),
    _set("avx2", _AVX2_FLAGS, "avx2", "AVX2", _AVX2),
    _set("neon-bf16", {"asimd", "asimddp", "bf16"}, "default", "", ("GGML_CPU_ARM_ARCH=armv8.6-a+dotprod+bf16",)),
    _set("neon-dotprod", {"asimd", "asimddp"}, "default", "", ("GGML_CPU_ARM_ARCH=armv8.2-a+dotprod",)),
    _set("neon", {"asimd"}, "default", "", ("GGML_CPU_ARM_ARCH=armv8-a",)),
)


def cpu_flags() -> set[str]:
    """Return the CPU's instruction sets as Linux names them; empty on other systems."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return set()
    line = next((line for line in text.splitlines() if line.startswith(("flags", "Features"))), "")
    return set(line.partition(":")[2].split())


def available(flags: Collection[str]) -> list[InstructionSet]:
    """Return the instruction sets of a CPU with these flags of /proc/cpuinfo, the best one first."""
    return [each for each in INSTRUCTION_SETS if each.flags <= set(flags)]


def named(name: str, flags: Collection[str]) -> InstructionSet:
    """Return the instruction set `name`.

    Raises:
        ValueError: There is no such instruction set, or a CPU with these flags lacks it.
    """
    found = available(flags)
    for each in found:
        if each.name == name:
            return each
    raise ValueError(f"{name} is not an instruction set of this CPU, which has {', '.join(s.name for s in found)}")
