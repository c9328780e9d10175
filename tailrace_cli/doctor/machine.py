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
from tailrace_cli.serve import HOW_TO_INSTALL

_PACKAGES = ("torch", "transformers", "bitsandbytes", "starlette", "uvicorn")


def machine() -> Iterator[Finding]:
    """Check the version of Python, and report the processors and the kernels that models use on them."""
    is_new = sys.version_info >= (3, 11)
    yield Finding(
        is_new, f"Python {platform.python_version()}", "" if is_new else "Tailrace needs Python 3.11 or newer."
    )
    yield Finding(None, f"{platform.system()} on {platform.machine()}, {os.cpu_count()} processors")
    yield from cpu.environment()
    yield from cpu.kernels()


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
