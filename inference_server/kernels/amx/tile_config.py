"""Builds the operand of the instruction ldtilecfg, which sets the shapes of AMX's eight tile registers."""

from functools import cache

import torch
from torch import Tensor


def tile_shapes(row_bytes: list[int], num_rows: list[int]) -> Tensor:
    """Return the 64-byte operand of ldtilecfg, (64,) uint8, for the eight registers' row lengths and row counts.

    Format: Intel 64 and IA-32 Architectures Software Developer's Manual, instruction LDTILECFG.

    Args:
        row_bytes: For each register, the bytes of a row, at most 64.
        num_rows: For each register, the number of rows, at most 16.
    """
    operand = torch.zeros(64, dtype=torch.uint8)
    operand[0] = 1  # palette 1: eight registers of at most 16 rows of 64 bytes
    operand[16:32:2] = torch.tensor(row_bytes)
    operand[48:56] = torch.tensor(num_rows)
    return operand


@cache
def full_tiles() -> Tensor:
    """Return the operand with 16 rows of 64 bytes in every register."""
    return tile_shapes([64] * 8, [16] * 8)
