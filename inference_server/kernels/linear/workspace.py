"""Sizes of the operands of linear kernels, and of the workspace in which activations.py converts activations.

Importing this module does not import llvmlite.
"""

INT8_TILE_INPUTS, INT4_TILE_INPUTS = 64, 32  # inputs of a tile of digits
# Number of ranks that the kernel `lora` multiplies at a time. Matrices are padded with zeros to a multiple of it.
LORA_RANKS = 4
_DIGIT_ROWS = 8  # rows of a block of digits


def workspace_bytes(num_rows: int, width: int, tile_inputs: int) -> int:
    """Return the bytes of the digits, row scales and sums of `num_rows` rows of `width` inputs."""
    sums = 4 * (width // INT4_TILE_INPUTS) if tile_inputs == INT4_TILE_INPUTS else 8
    return -(-num_rows // _DIGIT_ROWS) * _DIGIT_ROWS * (2 * width + 4 + sums)
