"""Checks of the machine and of the installed Python packages."""

import importlib.util
import os
import platform
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

from tailrace_cli.doctor import cpu
from tailrace_cli.doctor.finding import Finding
from tailrace_cli.doctor.gpu import gpu
from tailrace_cli.serving.serve import HOW_TO_INSTALL
from tailrace_shared.platforms import is_windows

_GIB = 2**30
_PACKAGES = ("torch", "transformers", "bitsandbytes", "starlette", "uvicorn")


def machine() -> Iterator[Finding]:
    """Check the version of Python, and report the processors, the memory and the kernels that models use on the CPU."""
    is_new = sys.version_info >= (3, 11)
    yield Finding(
        is_new, f"Python {platform.python_version()}", "" if is_new else "Tailrace needs Python 3.11 or newer."
    )
    yield Finding(None, f"{platform.system()} on {platform.machine()}, {os.cpu_count()} processors")
    yield from _memory()
    yield from cpu.environment()
    yield from cpu.kernels()


def _memory() -> Iterator[Finding]:
    """Report the memory that the services may use, and the limit of a container."""
    if is_windows() or importlib.util.find_spec("inference_server") is None:
        return
    from inference_server.machine import available_memory_bytes, machine_memory_bytes, memory_bytes

    allowed, present = memory_bytes(), machine_memory_bytes()
    text = f"{available_memory_bytes() / _GIB:.1f} GiB of {allowed / _GIB:.1f} GiB memory are available"
    if allowed < present:
        text += f"; a control group (container) limits them, the machine has {present / _GIB:.1f} GiB"
    yield Finding(None, text)


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
        yield from gpu()
