"""Assigns the tile registers, and emits the product of tiles of rows and panels, for all AMX units."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from inference_server.kernels.emit.values import Int
from inference_server.kernels.isa.amx.tiles import NUM_TILES, ROW_BYTES, TILE_ROWS
from inference_server.kernels.isa.vector_units import TOTAL_ROW

if TYPE_CHECKING:
    from inference_server.kernels.emit.code import Code

X, W = 4, 6  # tile registers 0 to 3 are sums, 4 and 5 rows of activations, 6 and 7 weights
TILE_BYTES = TILE_ROWS * ROW_BYTES
TOTALS = TILE_ROWS * TOTAL_ROW  # bytes of the sums of a tile of rows
FULL_ROWS = [ROW_BYTES] * NUM_TILES
FULL_TILES = [TILE_ROWS] * NUM_TILES


def multiply_tiles(
    code: "Code",
    num_tiles: int,
    start: Callable[[int, int], None],
    num_steps: Int,
    load_weights: Callable[[Int, int], None],
    load_rows: Callable[[Int, int], None],
    multiply: Callable[["Code", int, int, int], None],
) -> None:
    """Multiply `num_tiles` tiles of rows by two tiles of weights in each step, into tiles 0 to 3.

    Args:
        code: The function to append to.
        num_tiles: 1 or 2.
        start: Initialises the sums of a tile of rows and a panel.
        num_steps: Number of steps.
        load_weights: Loads the weights of a step and a panel.
        load_rows: Loads the rows of a step and a tile.
        multiply: Emits the tile instruction.
    """
    for tile in range(num_tiles):
        for panel in range(2):
            start(tile, panel)
    with code.loop(0, num_steps) as step:
        for panel in range(2):
            load_weights(step, panel)
        for tile in range(num_tiles):
            load_rows(step, tile)
            for panel in range(2):
                multiply(code, 2 * tile + panel, X + tile, W + panel)
