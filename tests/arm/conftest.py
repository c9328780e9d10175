"""The emulator of the tests in this folder, and the instruction sets that they compile for."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from tests.support.arm.compiled import CPUS, ArmCpu, compiled
from tests.support.arm.emulator import Emulator


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test of this folder, so that make test excludes it."""
    for item in items:
        if "tests/arm/" in item.path.as_posix():
            item.add_marker(pytest.mark.arm)


@pytest.fixture(scope="session")
def shared_emulator() -> Iterator[Emulator]:
    """Return the emulator of this process."""
    emulator = Emulator()
    yield emulator
    emulator.close()


@pytest.fixture
def emulator(shared_emulator: Emulator) -> Emulator:
    """Return the emulator without tensors of other tests. Seeds torch."""
    torch.manual_seed(0)
    shared_emulator.forget_tensors()
    return shared_emulator


@pytest.fixture
def place(emulator: Emulator) -> Callable[[Tensor], Tensor]:
    """Return the function that copies a tensor to the emulator's memory."""
    return emulator.place


@pytest.fixture(params=CPUS, ids=lambda cpu: cpu.isa.name)
def cpu(request: pytest.FixtureRequest) -> ArmCpu:
    """Return each emulated CPU in turn."""
    return request.param


@pytest.fixture
def call(emulator: Emulator, cpu: ArmCpu) -> Callable[..., None]:
    """Return a function that calls a kernel: call(argument block, name, True for each bfloat16 type)."""

    def call_kernel(block: bytes, name: str, *is_bf16: bool) -> None:
        emulator.call(compiled(cpu, name, *is_bf16), block, cpu.emulated)

    return call_kernel
