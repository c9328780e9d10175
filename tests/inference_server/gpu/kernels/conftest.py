"""Runs the Triton kernels of this folder's tests in Triton's interpreter, on CPU tensors.

Triton reads TRITON_INTERPRET when it is imported and again when it decorates a kernel. So the variable is set here,
before the first import of Triton in this process, and only while the kernels are imported. Tests elsewhere do not see it.
In this process @triton.jit functions cannot be compiled: a test that compiles starts a process without the variable.
"""

import importlib
import os
import pkgutil
import sys

import pytest

VARIABLE = "TRITON_INTERPRET"


def _import_interpreted() -> None:
    if "triton" in sys.modules and type(sys.modules["triton"].language.cdiv).__name__ != "InterpretedFunction":
        raise pytest.UsageError(
            "Triton was imported before tests/inference_server/gpu/kernels/conftest.py could set TRITON_INTERPRET=1. "
            "Import Triton, and modules of inference_server.gpu.kernels, inside functions, not when tests are collected."
        )
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = "1"
    try:
        package = importlib.import_module("inference_server.gpu.kernels")
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{package.__name__}.{module.name}")
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before


_import_interpreted()


@pytest.fixture(autouse=True)
def interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the operators of ops.py run their Triton kernels on CPU tensors during a test."""
    monkeypatch.setenv(VARIABLE, "1")
