"""Checks of the machine and of the installed Python packages."""

import importlib.util
import os
import platform
import sys
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

from tailrace_cli.doctor.finding import Finding
from tailrace_cli.serve import HOW_TO_INSTALL

_GIB = 2**30
_PACKAGES = ("torch", "transformers", "bitsandbytes", "starlette", "uvicorn")
# Linux's names of the CPU features that the compiled kernels need.
_AMX_FLAGS = ("amx_tile", "amx_int8", "amx_bf16", "avx512f", "avx512_vnni")


def machine() -> Iterator[Finding]:
    """Check the version of Python, and report the processors and the kernels that models use on them."""
    is_new = sys.version_info >= (3, 11)
    yield Finding(
        is_new, f"Python {platform.python_version()}", "" if is_new else "Tailrace needs Python 3.11 or newer."
    )
    yield Finding(None, f"{platform.system()} on {platform.machine()}, {os.cpu_count()} processors")
    yield _cpu_kernels()


def packages() -> Iterator[Finding]:
    """Report the packages that the services need, and the GPU that torch finds."""
    missing = []
    for name in _PACKAGES:
        try:
            yield Finding(True, f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    if missing:
        yield Finding(None, f"not installed, and needed to serve: {', '.join(missing)}", HOW_TO_INSTALL)
    if importlib.util.find_spec("torch") is not None:
        yield _gpu()


def _cpu_kernels() -> Finding:
    obstacle = _amx_obstacle()
    if obstacle is None:
        return Finding(True, "models on this CPU use the compiled kernels for AMX")
    return Finding(
        None,
        f"models on this CPU do not use the compiled kernels for AMX: {obstacle}",
        "Their linear layers use torch's operations instead, which are slower.",
    )


def _amx_obstacle() -> str | None:
    """Return the reason why this CPU cannot run the kernels for AMX, as a clause; None if it can."""
    try:
        from inference_server.kernels.isa import amx_obstacle

        obstacle: str | None = amx_obstacle()
        return obstacle
    except ImportError:  # without torch only Linux's list of features is available
        missing = [flag for flag in _AMX_FLAGS if flag not in _cpu_flags()]
        return f"this CPU lacks {', '.join(missing)}" if missing else None


def _cpu_flags() -> set[str]:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return set(next((line for line in lines if line.startswith("flags")), "").split())
    except OSError:
        return set()


def _gpu() -> Finding:
    started = time.monotonic()
    try:
        import torch

        if not torch.cuda.is_available():
            return Finding(None, "torch finds no GPU: models run on the CPU")
        name = torch.cuda.get_device_name(0)
        free, total = torch.cuda.mem_get_info(0)
    except (RuntimeError, OSError, ImportError) as error:
        return Finding(False, f"torch cannot be used: {error}".splitlines()[0], "Install torch again.")
    seconds = time.monotonic() - started
    return Finding(True, f"{name}, {free / _GIB:.1f} of {total / _GIB:.1f} GiB free (found in {seconds:.1f} s)")
