"""Runs the Triton kernels of this folder's tests in Triton's interpreter, on CPU tensors.

tests/conftest.py imports Triton as an interpreter. The kernels' modules are imported here, with the same variable, because
Triton reads it again at every @triton.jit. In this process no kernel can be compiled: a test that compiles starts another
process without the variable.
"""

import importlib
import pkgutil
from typing import Any

import pytest
import torch

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


def _support_bfloat16() -> None:
    """Make the interpreter multiply bfloat16 matrices, and round to bfloat16 as a GPU does.

    It stores bfloat16 as uint16. Its own product multiplies these integers, and its own conversion cuts the digits off.
    """
    interpreter = importlib.import_module("triton.runtime.interpreter")
    language = importlib.import_module("triton.language")
    builder, handle = interpreter.InterpreterBuilder, interpreter.TensorHandle
    multiply, cast = builder.create_dot, builder.cast_impl

    def cast_impl(self: Any, source: Any, target: Any) -> Any:
        if (source.dtype.scalar, target.scalar) == (language.float32, language.bfloat16):
            rounded = torch.tensor(source.data).to(torch.bfloat16).view(torch.uint16)
            return handle(rounded.numpy(), language.bfloat16)
        return cast(self, source, target)

    def create_dot(self: Any, left: Any, right: Any, *others: Any) -> Any:
        if left.dtype.scalar == language.bfloat16:
            left, right = (cast(self, side, language.float32) for side in (left, right))
        return multiply(self, left, right, *others)

    builder.cast_impl, builder.create_dot = cast_impl, create_dot


_import_kernels()
_support_bfloat16()


@pytest.fixture(autouse=True)
def interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the operators of ops.py run their Triton kernels on CPU tensors during a test."""
    monkeypatch.setenv(VARIABLE, "1")
