"""Whether this processor's tile registers (AMX) may be used, and what they are told to hold."""

from functools import cache

import torch
from torch import Tensor


@cache
def are_usable() -> bool:
    """The processor multiplies int8 and bfloat16 tiles, and the system lets this process do so."""
    return bool(torch.cpu._is_amx_tile_supported() and torch.cpu._init_amx())


def shapes(row_bytes: list[int], rows: list[int]) -> Tensor:
    """Of the 8 registers, in the form of the instruction ldtilecfg: (64,) uint8."""
    told = torch.zeros(64, dtype=torch.uint8)
    told[0] = 1
    told[16:32:2] = torch.tensor(row_bytes)
    told[48:56] = torch.tensor(rows)
    return told


@cache
def full_shapes() -> Tensor:
    return shapes([64] * 8, [16] * 8)
