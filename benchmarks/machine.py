"""Describes the machine and its software for the results. The description contains no host name, user name or path.

Results are stored by CPU class: one folder for each kind of CPU, and one more for each instruction set that its runs
were limited to.
"""

import os
import platform
import re
from collections.abc import Collection
from pathlib import Path

import psutil

from benchmarks.instruction_sets import InstructionSet, cpu_flags

RESULTS = Path(__file__).parent / "results"
_RELEVANT_FLAGS = (
    "avx2",
    "avx_vnni",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_bf16",
    "amx_int8",
    "asimd",
    "asimddp",
    "bf16",
    "sve",
)
_VENDORS = {"GenuineIntel": "intel", "AuthenticAMD": "amd", "0x41": "arm", "0x61": "apple", "0xc0": "ampere"}
# The families of instruction sets, the best one first: the name, which is part of a class name, and the flag of
# /proc/cpuinfo that a CPU of the family has.
_FAMILIES = (("amx", "amx_int8"), ("avx512", "avx512f"), ("avx2", "avx2"), ("neon", "asimd"))


def describe() -> dict[str, object]:
    """Return CPU, microarchitecture, available cores, instruction sets, memory in GiB, system and Python version."""
    flags = cpu_flags()
    return {
        "cpu": _cpuinfo("model name") or platform.processor() or "unknown",
        "microarchitecture": _microarchitecture(),
        "cores": len(os.sched_getaffinity(0)),
        "instructions": [flag for flag in _RELEVANT_FLAGS if flag in flags],
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def cpu_class(limit: InstructionSet | None = None) -> str:
    """Return the name of this machine's folder of results, such as "amd-zen4-avx512".

    With a `limit`, its name replaces the family of instruction sets: "amd-zen4-as-avx2".
    """
    vendor = _cpuinfo("vendor_id") or _cpuinfo("CPU implementer")
    return class_name(vendor, _microarchitecture(), cpu_flags(), limit)


def class_name(vendor: str, microarchitecture: str, flags: Collection[str], limit: InstructionSet | None = None) -> str:
    """Return the name of a class of CPUs.

    Args:
        vendor: As /proc/cpuinfo names it: "AuthenticAMD", or the hexadecimal code of an Arm implementer.
        microarchitecture: LLVM's name, such as "znver4"; "" if unknown.
        flags: The flags of /proc/cpuinfo.
        limit: The instruction set that the run was limited to.
    """
    family = instruction_family(flags)
    # All CPUs of one vendor with AMX are one class: these benchmarks show no difference between their cores.
    parts = [_VENDORS.get(vendor, vendor.lower()), "" if family == "amx" else _short(microarchitecture)]
    parts += ["as", limit.name] if limit else [family]
    return "-".join(re.sub(r"[^a-z0-9]+", "-", part.lower()) for part in parts if part)


def instruction_family(flags: Collection[str]) -> str:
    """Return "amx", "avx512", "avx2" or "neon", the best of a CPU with these flags; "scalar" for any other."""
    return next((name for name, flag in _FAMILIES if flag in flags), "scalar")


def results_folder(limit: InstructionSet | None = None) -> Path:
    """Return the folder of the results of this CPU class, which may not exist yet."""
    return RESULTS / cpu_class(limit)


def _short(microarchitecture: str) -> str:
    """Return LLVM's name as a class name contains it: "zen4", "skylake", "neoverse-n1"; "" for "generic"."""
    return re.sub(r"^znver", "zen", microarchitecture.lower()).removesuffix("-avx512").removeprefix("generic")


def _microarchitecture() -> str:
    """Return LLVM's name of this CPU, such as "znver4"; "" without llvmlite."""
    try:
        from llvmlite import binding
    except ImportError:
        return ""
    return str(binding.get_host_cpu_name())


def _cpuinfo(name: str) -> str:
    """Return the first value of `name` in /proc/cpuinfo, or ""."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")
