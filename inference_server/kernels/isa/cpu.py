"""Detects which instruction sets this CPU offers. No other module detects them by itself.

LLVM's feature names ("avx512f", "amx-int8") determine the instructions in the kernels. Tile registers (AMX) need the
operating system's permission as well, which torch requests. Importing this module imports neither torch nor llvmlite.
"""

from functools import cache

_AMX_FEATURES = ("amx-tile", "amx-int8", "amx-bf16", "avx512f", "avx512vnni")


@cache
def llvm_features() -> dict[str, bool]:
    """Return LLVM's name of every feature of this architecture, with True for the features of this CPU.

    Raises:
        ImportError: llvmlite is not installed.
    """
    from llvmlite import binding

    return dict(binding.get_host_cpu_features())


def llvm_feature_string() -> str:
    """Return the features as LLVM's target machines take them: "+avx2,-avx512f,…"."""
    return ",".join(("+" if has else "-") + name for name, has in sorted(llvm_features().items()))


@cache
def llvm_cpu_name() -> str:
    """Return LLVM's name of this CPU, for example "znver4"."""
    from llvmlite import binding

    return str(binding.get_host_cpu_name())


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


def num_float32_lanes() -> int:
    """Return the number of float32 values in the widest vector register: 16, 8 or 4."""
    features = llvm_features()
    return 16 if features.get("avx512f") else 8 if features.get("avx2") else 4


def converts_bfloat16() -> bool:
    """Check whether one instruction rounds a vector of float32 to bfloat16."""
    return bool(llvm_features().get("avx512bf16"))


@cache
def multiplies_bfloat16() -> bool:
    """Check whether oneDNN multiplies bfloat16 with AVX512_BF16 or AMX. Without them it is slower than float32."""
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
    except (OSError, RuntimeError) as error:  # its library cannot be loaded, or it does not support this system
        return f"llvmlite, which compiles the kernels, cannot be used ({error})"
    if missing:
        return f"the compiler does not find {', '.join(missing)} on this CPU"
    if not torch.cpu._init_amx():
        return "the operating system does not let this process use AMX"
    return None


def refused_amx() -> str | None:
    """Return the reason why kernels cannot use the AMX that this CPU has, as a clause; None if they can or it has none."""
    import torch

    return amx_obstacle() if torch.cpu._is_amx_tile_supported() else None


def has_amx() -> bool:
    """Check whether kernels can use tile registers (AMX)."""
    return amx_obstacle() is None
