"""Emits matrix products with int8 weights on tile registers. Results are bit-identical to those of the vector unit."""

from typing import TYPE_CHECKING

from inference_server.kernels.emit.values import Int
from inference_server.kernels.isa.amx.products import FULL_ROWS, FULL_TILES, TILE_BYTES, TOTALS, W, X, multiply_tiles
from inference_server.kernels.isa.amx.tiles import CONFIG_BYTES, ROW_BYTES, TileInstructions, write_config
from inference_server.kernels.isa.vector_units import DIGIT_ROWS, PANEL, TOTAL_ROW, Int8Unit

if TYPE_CHECKING:
    from inference_server.kernels.emit.code import Code


class AmxInt8Unit(Int8Unit):
    """Products of fixed-point rows (two int8 digits) with signed int8 codes, with tdpbssd: 64 inputs in a step.

    A tile of activations contains the high digits of 8 rows, then their low digits. A tile of sums has the same order.
    """

    max_rows = 2 * DIGIT_ROWS
    tiles = TileInstructions()

    def __init__(self, code: "Code") -> None:
        """Write the shapes of the tiles to the stack, for `use`."""
        super().__init__(code)
        self._config = code.stack(CONFIG_BYTES)
        write_config(code, self._config, FULL_ROWS, FULL_TILES)

    def use(self, code: "Code") -> None:
        """See Int8Unit."""
        self.tiles.configure(code, self._config)

    def release(self, code: "Code") -> None:
        """See Int8Unit."""
        self.tiles.release(code)

    def multiply(self, code: "Code", rows: Int, width: Int, codes: Int, sums: Int, totals: Int, count: Int) -> None:
        """See Int8Unit. The codes are signed, so `sums` is not needed."""
        with code.either(count > DIGIT_ROWS) as (many, few):
            with many:
                self._multiply(code, 2, rows, width, codes, totals)
            with few:
                self._multiply(code, 1, rows, width, codes, totals)

    def _multiply(self, code: "Code", num_tiles: int, rows: Int, width: Int, codes: Int, totals: Int) -> None:
        tiles, row_bytes, total_bytes = self.tiles, code.integer(ROW_BYTES), code.integer(TOTAL_ROW)

        def load_weights(step: Int, panel: int) -> None:
            tiles.load(code, W + panel, codes + step * TILE_BYTES + width * (PANEL * panel), row_bytes)

        def load_rows(step: Int, tile: int) -> None:
            tiles.load(code, X + tile, rows + step * TILE_BYTES + width * (2 * DIGIT_ROWS * tile), row_bytes)

        def start(tile: int, panel: int) -> None:
            tiles.zero(code, 2 * tile + panel)

        multiply_tiles(code, num_tiles, start, width // 64, load_weights, load_rows, tiles.multiply_int8)
        for tile in range(num_tiles):
            for panel in range(2):
                tiles.store(code, 2 * tile + panel, totals + (TOTALS * tile + 4 * PANEL * panel), total_bytes)
