"""Emits matrix products with bfloat16 weights on tile registers."""

from typing import TYPE_CHECKING

from inference_server.kernels.emit.values import Int
from inference_server.kernels.isa.amx.products import FULL_ROWS, FULL_TILES, TOTALS, W, X, multiply_tiles
from inference_server.kernels.isa.amx.tiles import CONFIG_BYTES, ROW_BYTES, TILE_ROWS, TileInstructions, write_config
from inference_server.kernels.isa.vector_units import MAX_ROWS, PANEL, TOTAL_ROW, Bf16Unit

if TYPE_CHECKING:
    from inference_server.kernels.emit.code import Code


class AmxBf16Unit(Bf16Unit):
    """Products of bfloat16 rows with bfloat16 weights, with tdpbf16ps: 32 inputs in a step."""

    tiles = TileInstructions()

    def __init__(self, code: "Code", num_rows: "Int | int") -> None:
        """Write the shapes of the tiles for 32 rows and for the remaining rows, and configure the shapes used first.

        If `num_rows` is an int, no rows remain, and only `use_whole` configures the tiles.
        """
        super().__init__(code, num_rows)
        self._num_rows = num_rows
        self._whole = code.stack(CONFIG_BYTES)
        write_config(code, self._whole, FULL_ROWS, FULL_TILES)
        if isinstance(num_rows, int):
            if num_rows % MAX_ROWS:
                raise ValueError("a number of rows that is known in advance must be a multiple of 32")
            return
        self._rest = code.stack(CONFIG_BYTES)
        rest = num_rows % MAX_ROWS
        first, second = rest.minimum(TILE_ROWS).maximum(1), (rest - TILE_ROWS).maximum(1)
        # A byte for each tile, its number of rows: tiles 0, 1 and 4 for the first 16 rows, tiles 2, 3 and 5 for the others,
        # tiles 6 and 7 for weights.
        rows = first * 0x0001_0000_0101 + second * 0x0100_0101_0000 + (0x1010 << 48)
        write_config(code, self._rest, FULL_ROWS, rows)
        self.tiles.configure(code, (num_rows >= MAX_ROWS).select(self._whole, self._rest))

    def use_whole(self, code: "Code") -> None:
        """See Bf16Unit. Configures the tiles unless `__init__` did so and `use_rest` never changes them."""
        if isinstance(self._num_rows, int):
            self.tiles.configure(code, self._whole)
            return
        with code.when((self._num_rows > MAX_ROWS) & (self._num_rows % MAX_ROWS > 0)):
            self.tiles.configure(code, self._whole)

    def use_rest(self, code: "Code") -> None:
        """See Bf16Unit."""
        if isinstance(self._num_rows, Int):
            with code.when(self._num_rows > MAX_ROWS):
                self.tiles.configure(code, self._rest)

    def release(self, code: "Code") -> None:
        """See Bf16Unit."""
        self.tiles.release(code)

    def multiply(
        self,
        code: "Code",
        x: tuple[Int, "Int | int", "Int | int"],
        weights: tuple[Int, "Int | int", "Int | int"],
        num_steps: "Int | int",
        out: Int,
        count: "Int | int",
        *,
        adds: bool = False,
        are_cached: bool = False,
    ) -> None:
        """See Bf16Unit."""
        if isinstance(count, int):
            self._multiply(code, 1 if count <= TILE_ROWS else 2, x, weights, num_steps, out, adds)
            return
        with code.either(count > TILE_ROWS) as (many, few):
            with many:
                self._multiply(code, 2, x, weights, num_steps, out, adds)
            with few:
                self._multiply(code, 1, x, weights, num_steps, out, adds)

    def _multiply(
        self,
        code: "Code",
        num_tiles: int,
        x: tuple[Int, "Int | int", "Int | int"],
        weights: tuple[Int, "Int | int", "Int | int"],
        num_steps: "Int | int",
        out: Int,
        adds: bool,
    ) -> None:
        tiles, row_bytes = self.tiles, code.integer(ROW_BYTES)
        total_bytes, x_bytes = code.integer(TOTAL_ROW), code.integer(0) + x[1]

        def place(tile: int, panel: int) -> Int:
            return out + (TOTALS * tile + 4 * PANEL * panel)

        def start(tile: int, panel: int) -> None:
            if adds:
                tiles.load(code, 2 * tile + panel, place(tile, panel), total_bytes)
            else:
                tiles.zero(code, 2 * tile + panel)

        def load_weights(step: Int, panel: int) -> None:
            tiles.load(
                code, W + panel, weights[0] + step * weights[1] + panel * (code.integer(0) + weights[2]), row_bytes
            )

        def load_rows(step: Int, tile: int) -> None:
            tiles.load(code, X + tile, x[0] + step * x[2] + x_bytes * (TILE_ROWS * tile), x_bytes)

        steps = code.integer(0) + num_steps
        multiply_tiles(code, num_tiles, start, steps, load_weights, load_rows, tiles.multiply_bf16)
        for tile in range(num_tiles):
            for panel in range(2):
                tiles.store(code, 2 * tile + panel, place(tile, panel), total_bytes)
