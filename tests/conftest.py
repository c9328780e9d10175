"""Fixtures for every folder: tiny models on disk, created once per test run."""

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function from an architecture's name (tiny_models.ARCHITECTURES) to a model folder."""
    from tests.support.tiny_models import write_model

    folders: dict[str, Path] = {}

    def folder(architecture: str) -> Path:
        if architecture not in folders:
            folders[architecture] = write_model(tmp_path_factory.mktemp(architecture), architecture)
        return folders[architecture]

    return folder
