"""Checks whether Triton kernels can run here. Importing this module imports neither torch nor Triton."""

import functools
import importlib.util
import os
import shutil


@functools.cache
def has_triton() -> bool:
    """Return True if Triton kernels can be compiled and launched here. Does not check that there is a GPU."""
    return obstacle() is None


def interprets() -> bool:
    """Return True if Triton's interpreter runs kernels on CPU tensors (TRITON_INTERPRET=1), as in tests."""
    return os.environ.get("TRITON_INTERPRET") == "1" and importlib.util.find_spec("triton") is not None


def obstacle() -> str | None:
    """Return the reason why Triton kernels cannot run here, as a clause with its remedy, or None if they can.

    At run time, Triton compiles the launcher of each kernel with the system's C compiler.
    """
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed (pip install triton)"
    if not (os.environ.get("CC") or any(shutil.which(name) for name in ("gcc", "clang", "cc"))):
        return "Triton finds no C compiler (install gcc, or set CC)"
    return None
