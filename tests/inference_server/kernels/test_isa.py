"""Detection of the CPU's instruction sets."""

import pytest
import torch

from inference_server.kernels.isa import cpu as isa


@pytest.fixture
def undetected():
    isa.amx_obstacle.cache_clear()
    yield
    isa.amx_obstacle.cache_clear()


@pytest.mark.parametrize(
    ("error", "obstacle"),
    [
        (ImportError("no module"), "llvmlite, which compiles the kernels, is not installed"),
        (OSError("no libllvmlite.so"), "llvmlite, which compiles the kernels, cannot be used (no libllvmlite.so)"),
    ],
)
def test_a_compiler_that_cannot_be_used_is_an_obstacle(undetected, monkeypatch, error, obstacle):
    def fail():
        raise error

    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    monkeypatch.setattr(isa, "llvm_features", fail)
    assert isa.amx_obstacle() == obstacle
