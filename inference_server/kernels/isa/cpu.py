"""Detects which instruction sets this CPU offers. All other modules use this detection.

LLVM's feature names ("avx512f", "amx-int8") determine the instructions in the kernels. Tile registers (AMX) need the
operating system's permission as well, which torch requests. Importing this module imports neither torch nor llvmlite.
"""

import ctypes
import sys
from functools import cache
from pathlib import Path

_AMX_FEATURES = ("amx-tile", "amx-int8", "amx-bf16", "avx512f", "avx512vnni")


@cache
def llvm_features() -> dict[str, bool]:
    """Return every feature of this architecture by LLVM's name: True if this CPU has the feature.

    Raises:
        ImportError: llvmlite is not installed.
    """
    from llvmlite import binding

    features = dict(binding.get_host_cpu_features())
    return features if is_x86() else features | _arm_features()


def _arm_features() -> dict[str, bool]:
    """Return every Arm feature that the kernels use by LLVM's name: True if this CPU has the feature.

    LLVM itself finds few of them on Linux, and none on macOS.
    """
    if sys.platform == "darwin":
        names = {"dotprod": "hw.optional.arm.FEAT_DotProd", "bf16": "hw.optional.arm.FEAT_BF16"}
        return {"neon": True} | {feature: _is_set_on_macos(name) for feature, name in names.items()}
    try:
        return arm_features_of_linux(Path("/proc/cpuinfo").read_text())
    except OSError:
        return {}


def arm_features_of_linux(cpuinfo: str) -> dict[str, bool]:
    """Return the same as `_arm_features`: True if all cores have the feature. `cpuinfo`: text of /proc/cpuinfo."""
    lines = [line.partition(":")[2].split() for line in cpuinfo.splitlines() if line.startswith("Features")]
    names = {"neon": "asimd", "dotprod": "asimddp", "bf16": "bf16"}
    return {feature: bool(lines) and all(name in line for line in lines) for feature, name in names.items()}


def _is_set_on_macos(name: str) -> bool:
    """Check whether a value of macOS's sysctl, an integer of 4 bytes, exists and is not 0."""
    value, size = ctypes.c_int(0), ctypes.c_size_t(4)
    read = ctypes.CDLL(None).sysctlbyname
    return read(name.encode(), ctypes.byref(value), ctypes.byref(size), None, ctypes.c_size_t(0)) == 0 and bool(value)


@cache
def llvm_triple() -> str:
    """Return LLVM's name of this platform, for example "x86_64-unknown-linux-gnu"."""
    from llvmlite import binding

    return str(binding.get_process_triple())


@cache
def is_x86() -> bool:
    """Check whether this process runs x86-64 code."""
    from llvmlite import binding

    return bool(binding.get_process_triple().startswith("x86_64"))


@cache
def multiplies_bfloat16() -> bool:
    """Check whether oneDNN multiplies bfloat16 with AVX512_BF16 or AMX. Without them, bfloat16 is slower than float32."""
    import torch

    has_units = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return bool(has_units and torch.ops.mkldnn._is_mkldnn_bf16_supported())


@cache
def amx_obstacle() -> str | None:
    """Return the reason why kernels cannot use tile registers (AMX), as a clause; None if they can.

    The first call requests the operating system's permission for this process.
    """
    import torch

    if not torch.cpu._is_amx_tile_supported():
        return "this CPU lacks AMX (tile registers for int8 and bfloat16)"
    try:
        missing = [name for name in _AMX_FEATURES if not llvm_features().get(name)]
    except ImportError:
        return "llvmlite, which compiles the kernels, is not installed"
    except (OSError, RuntimeError) as error:  # llvmlite's library cannot be loaded, or does not support this system
        return f"llvmlite, which compiles the kernels, cannot be used ({error})"
    if missing:
        return f"the compiler does not find {', '.join(missing)} on this CPU"
    if not torch.cpu._init_amx():
        return "the operating system does not let this process use AMX"
    return None


def refused_amx() -> str | None:
    """Return the reason why kernels cannot use this CPU's AMX, as a clause; None if they can, or without AMX."""
    import torch

    return amx_obstacle() if torch.cpu._is_amx_tile_supported() else None


def has_amx() -> bool:
    """Check whether kernels can use tile registers (AMX)."""
    return amx_obstacle() is None
