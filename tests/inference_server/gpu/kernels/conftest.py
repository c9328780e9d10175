"""Runs the Triton kernels of this folder's tests in Triton's interpreter, on CPU tensors.

tests/conftest.py imports Triton as an interpreter. The kernels' modules are imported here, with the same variable, because
Triton reads it again at every @triton.jit. In this process no kernel can be compiled: a test that compiles starts another
process without the variable.
"""

import importlib
import pkgutil

import pytest

VARIABLE = "TRITON_INTERPRET"


def _import_kernels() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, "1")
        language = importlib.import_module("triton.language")
        if type(language.cdiv).__name__ != "InterpretedFunction":
            raise pytest.UsageError(
                f"Triton was imported without {VARIABLE}=1, before tests/conftest.py could import it. "
                f"Set {VARIABLE}=1 for the whole run, or run these tests in a process of their own."
            )
        package = importlib.import_module("inference_server.gpu.kernels")
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{package.__name__}.{module.name}")


_import_kernels()


@pytest.fixture(autouse=True)
def interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the operators of ops.py run their Triton kernels on CPU tensors during a test."""
    monkeypatch.setenv(VARIABLE, "1")
