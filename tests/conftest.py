"""Fixtures for every folder: tiny models on disk, created once per test run."""

import importlib
import importlib.util
import os
from collections.abc import Callable
from pathlib import Path

import pytest


def _import_triton_as_interpreter() -> None:
    """Import Triton with TRITON_INTERPRET=1, so that kernels can run on CPU tensors in this process.

    Triton reads the variable at its first import and again where it decorates a kernel. transformers imports Triton, so
    this import must come first. The variable is then removed: only the tests in inference_server/gpu/kernels set it.
    """
    if importlib.util.find_spec("triton") is None or "TRITON_INTERPRET" in os.environ:
        return
    os.environ["TRITON_INTERPRET"] = "1"
    try:
        importlib.import_module("triton")
    finally:
        del os.environ["TRITON_INTERPRET"]


_import_triton_as_interpreter()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function from an architecture's name (tiny_models.ARCHITECTURES) to a model folder."""
    from tests.support.models.tiny_models import write_model

    folders: dict[str, Path] = {}

    def folder(architecture: str) -> Path:
        if architecture not in folders:
            folders[architecture] = write_model(tmp_path_factory.mktemp(architecture), architecture)
        return folders[architecture]

    return folder
