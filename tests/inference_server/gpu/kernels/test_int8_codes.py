"""The assembly that converts codes is run here on all codes, as PTX defines its instructions."""

import re
from collections.abc import Callable

import pytest
import torch

from inference_server.gpu.kernels import int8_codes


class Registers:
    """The registers of PTX code, 32 bits each, as integers by name."""

    def __init__(self, packed: int) -> None:
        self.values = {"$2": packed}

    def read(self, operand: str) -> int:
        return int(operand, 16) if operand.startswith("0x") else self.values[operand]


def _permuted(low: int, high: int, selector: int) -> int:
    """Return the bytes of `high` and `low` (bytes 7 to 0) that the selector's digits name, lowest digit first."""
    octets = low.to_bytes(4, "little") + high.to_bytes(4, "little")
    return int.from_bytes(bytes(octets[selector >> 4 * place & 0xF] for place in range(4)), "little")


def _halves(register: int, dtype: torch.dtype) -> torch.Tensor:
    parts = [(register & 0xFFFF), register >> 16]
    return torch.tensor(parts, dtype=torch.uint16).view(dtype)


def _joined(halves: torch.Tensor) -> int:
    low, high = halves.view(torch.uint16).tolist()
    return int(low | high << 16)


def _multiplied(a: int, b: int, c: int) -> int:
    one, two, three = (_halves(register, torch.bfloat16).double() for register in (a, b, c))
    return _joined((one * two + three).to(torch.bfloat16))


def _subtracted(a: int, b: int) -> int:
    return _joined(_halves(a, torch.float16) - _halves(b, torch.float16))


INSTRUCTIONS: dict[str, Callable[..., int]] = {
    "mov.b32": lambda a: a,
    "xor.b32": lambda a, b: a ^ b,
    "and.b32": lambda a, b: a & b,
    "prmt.b32": _permuted,
    "sub.f16x2": _subtracted,
    "fma.rn.bf16x2": _multiplied,
}


def _run(assembly: str, packed: int) -> tuple[int, int]:
    registers = Registers(packed)
    for line in re.findall(r"^\s*([a-z].*);", assembly, re.MULTILINE):
        name, operands = line.split(maxsplit=1)
        target, *sources = operands.split(", ")
        registers.values[target] = INSTRUCTIONS[name](*map(registers.read, sources))
    return registers.values["$0"], registers.values["$1"]


@pytest.mark.parametrize(
    ("assembly", "dtype"), [(int8_codes.TO_FLOAT16, torch.float16), (int8_codes.TO_BFLOAT16, torch.bfloat16)]
)
def test_the_assembly_converts_every_code_exactly(assembly: object, dtype: torch.dtype) -> None:
    codes = list(range(-128, 128))
    results: list[float] = []
    for first in range(0, len(codes), 4):
        packed = int.from_bytes(bytes(code & 0xFF for code in codes[first : first + 4]), "little")
        for register in _run(str(getattr(assembly, "value", assembly)), packed):
            results += _halves(register, dtype).tolist()
    assert results == codes
