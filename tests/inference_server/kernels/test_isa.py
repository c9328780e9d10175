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


@pytest.mark.parametrize(
    ("cores", "found"),
    [
        (["fp asimd evtstrm crc32 cpuid"], {"neon": True, "dotprod": False, "bf16": False}),
        (["fp asimd asimdhp asimddp"] * 2, {"neon": True, "dotprod": True, "bf16": False}),
        (["fp asimd asimddp svebf16 bf16"] * 2, {"neon": True, "dotprod": True, "bf16": True}),
        (["fp asimd asimddp bf16", "fp asimd asimddp"], {"neon": True, "dotprod": True, "bf16": False}),
        ([], {"neon": False, "dotprod": False, "bf16": False}),
    ],
    ids=["Cortex-A72", "Neoverse N1", "Neoverse V1", "different cores", "unreadable"],
)
def test_features_of_arm_are_those_that_all_cores_have(cores, found):
    text = "".join(f"processor\t: {core}\nFeatures\t: {names}\n\n" for core, names in enumerate(cores))
    assert isa.arm_features_of_linux(text) == found
