"""Matrix products on tile registers: up to two tiles of rows times two panels of 16 outputs.

Tile registers 0 to 3 are sums, 4 and 5 (_X) rows of activations, 6 and 7 (_W) weights. Results have the bits of the
vector units for int8 and int4; for bfloat16 each sum is added up in the order of the inputs, too.
"""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from inference_server.kernels.emit.values import FLOAT, HALF, INT8, INT32, Int, Vector
from inference_server.kernels.isa.amx.tiles import (
    CONFIG_BYTES,
    NUM_TILES,
    ROW_BYTES,
    TILE_ROWS,
    TileInstructions,
    write_config,
)
from inference_server.kernels.isa.vector_units import (
    DIGIT_ROWS,
    GROUP,
    GROUP_BYTES,
    MAX_ROWS,
    PANEL,
    TOTAL_ROW,
    Bf16Unit,
    Int4Unit,
    Int8Unit,
)

if TYPE_CHECKING:
    from inference_server.kernels.emit.code import Code

_X, _W = 4, 6
_TILE_BYTES = TILE_ROWS * ROW_BYTES
_TOTALS = TILE_ROWS * TOTAL_ROW  # bytes of the sums of a tile of rows
_FULL = [ROW_BYTES] * NUM_TILES
_GROUP_CODES = 2 * GROUP * PANEL  # bytes of two panels' unpacked codes of one group
_MAX_ROWS_ON_VECTORS = 4  # rows of a batch up to which vectors multiply int4 weights faster than tiles


def _multiply_tiles(
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
        start: Sets the sums of a tile of rows and a panel.
        num_steps: Number of steps.
        load_weights: Loads the weights of a step and a panel.
        load_rows: Loads the rows of a step and a tile.
        multiply: The tile instruction.
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
                multiply(code, 2 * tile + panel, _X + tile, _W + panel)


class AmxBf16Unit(Bf16Unit):
    """Products of bfloat16 rows with bfloat16 weights, with tdpbf16ps: 32 inputs in a step."""

    tiles = TileInstructions()

    def __init__(self, code: "Code", num_rows: "Int | int") -> None:
        """Write the shapes of the tiles. If they are the same for all rows, configure them here or in `use_whole`."""
        super().__init__(code, num_rows)
        self._num_rows = num_rows
        self._whole = code.stack(CONFIG_BYTES)
        write_config(code, self._whole, _FULL, [TILE_ROWS] * NUM_TILES)
        if isinstance(num_rows, int):
            if num_rows % MAX_ROWS:
                raise ValueError("a number of rows that is known in advance must be a multiple of 32")
            return
        self._rest = code.stack(CONFIG_BYTES)
        rest = num_rows % MAX_ROWS
        first, second = rest.minimum(TILE_ROWS).maximum(1), (rest - TILE_ROWS).maximum(1)
        # Rows of tiles 0, 1 and 4 (the first 16 rows), of 2, 3 and 5 (the others), and of 6 and 7 (weights), a byte each.
        rows = first * 0x0001_0000_0101 + second * 0x0100_0101_0000 + (0x1010 << 48)
        write_config(code, self._rest, _FULL, rows)
        self.tiles.configure(code, (num_rows >= MAX_ROWS).select(self._whole, self._rest))

    def use_whole(self, code: "Code") -> None:
        """See Bf16Unit. Tiles are configured here only if some rows need the other shapes."""
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
            return out + (_TOTALS * tile + 4 * PANEL * panel)

        def start(tile: int, panel: int) -> None:
            if adds:
                tiles.load(code, 2 * tile + panel, place(tile, panel), total_bytes)
            else:
                tiles.zero(code, 2 * tile + panel)

        def load_weights(step: Int, panel: int) -> None:
            tiles.load(
                code, _W + panel, weights[0] + step * weights[1] + panel * (code.integer(0) + weights[2]), row_bytes
            )

        def load_rows(step: Int, tile: int) -> None:
            tiles.load(code, _X + tile, x[0] + step * x[2] + x_bytes * (TILE_ROWS * tile), x_bytes)

        steps = code.integer(0) + num_steps
        _multiply_tiles(code, num_tiles, start, steps, load_weights, load_rows, tiles.multiply_bf16)
        for tile in range(num_tiles):
            for panel in range(2):
                tiles.store(code, 2 * tile + panel, place(tile, panel), total_bytes)


class AmxInt8Unit(Int8Unit):
    """Products of rows in two digits with signed int8 codes, with tdpbssd: 64 inputs in a step.

    A block of 8 rows is one tile: the sums of the high digits, then of the low digits.
    """

    max_rows = 2 * DIGIT_ROWS
    tiles = TileInstructions()

    def __init__(self, code: "Code") -> None:
        """Write the shapes of the tiles."""
        super().__init__(code)
        self._config = code.stack(CONFIG_BYTES)
        write_config(code, self._config, _FULL, [TILE_ROWS] * NUM_TILES)

    def use(self, code: "Code") -> None:
        """See Int8Unit."""
        self.tiles.configure(code, self._config)

    def release(self, code: "Code") -> None:
        """See Int8Unit."""
        self.tiles.release(code)

    def multiply(self, code: "Code", rows: Int, width: Int, codes: Int, sums: Int, totals: Int, count: Int) -> None:
        """See Int8Unit. The codes are signed, so that `sums` are not needed."""
        with code.either(count > DIGIT_ROWS) as (many, few):
            with many:
                self._multiply(code, 2, rows, width, codes, totals)
            with few:
                self._multiply(code, 1, rows, width, codes, totals)

    def _multiply(self, code: "Code", num_tiles: int, rows: Int, width: Int, codes: Int, totals: Int) -> None:
        tiles, row_bytes, total_bytes = self.tiles, code.integer(ROW_BYTES), code.integer(TOTAL_ROW)

        def load_weights(step: Int, panel: int) -> None:
            tiles.load(code, _W + panel, codes + step * _TILE_BYTES + width * (PANEL * panel), row_bytes)

        def load_rows(step: Int, tile: int) -> None:
            tiles.load(code, _X + tile, rows + step * _TILE_BYTES + width * (2 * DIGIT_ROWS * tile), row_bytes)

        def start(tile: int, panel: int) -> None:
            tiles.zero(code, 2 * tile + panel)

        _multiply_tiles(code, num_tiles, start, width // 64, load_weights, load_rows, tiles.multiply_int8)
        for tile in range(num_tiles):
            for panel in range(2):
                tiles.store(code, 2 * tile + panel, totals + (_TOTALS * tile + 4 * PANEL * panel), total_bytes)


class AmxInt4Unit(Int4Unit):
    """Products of rows in two digits with int4 weights: on vectors for few rows, otherwise with tdpbssd.

    The codes of two panels are unpacked to bytes before their first use: for each group, a tile of 8 rows for each panel.
    """

    tiles = TileInstructions()

    def __init__(self, code: "Code", num_rows: Int, width: Int) -> None:
        """Allocate the unpacked codes, and configure the tiles if they are used."""
        super().__init__(code, num_rows, width)
        self._uses_tiles, self._num_groups = num_rows > _MAX_ROWS_ON_VECTORS, width // GROUP
        self._codes, self._scratch = code.stack(width * (2 * PANEL)), code.stack(_TOTALS)
        config = code.stack(CONFIG_BYTES)
        row_bytes = [ROW_BYTES] * _X + [GROUP] * 2 + [ROW_BYTES] * 2
        write_config(code, config, row_bytes, [TILE_ROWS] * _W + [GROUP // 4] * 2)
        with code.when(self._uses_tiles):
            self.tiles.configure(code, config)

    def release(self, code: "Code") -> None:
        """See Int4Unit."""
        self.tiles.release(code)

    def use_panels(self, code: "Code", panels: Int) -> None:
        """Unpack the codes, if tiles are used."""
        with code.when(self._uses_tiles):
            for panel in range(2):
                source = panels + self._num_groups * (GROUP_BYTES * panel) + 4 * PANEL
                with code.loop(0, self._num_groups) as group:
                    for piece in range(0, 256, 64):
                        packed = code.load_vector(source + group * GROUP_BYTES + piece, INT8, 64)
                        place = self._codes + group * _GROUP_CODES + (GROUP * PANEL * panel + piece)
                        code.store(packed & 15, place, 64)
                        code.store(packed >> 4, place + 256, 64)

    def multiply(
        self, code: "Code", rows: Int, panels: Int, sums: Int, num_groups: Int, totals: Int, count: Int
    ) -> None:
        """See Int4Unit. The results are bit-identical on vectors and on tiles."""
        with code.either(self._uses_tiles) as (on_tiles, on_vectors):
            with on_tiles, code.either(count > 4) as (many, few):
                for branch, num_rows in ((many, DIGIT_ROWS), (few, 4)):
                    with branch:
                        code.call(
                            f"int4_tiles_{num_rows}",
                            partial(_multiply_int4, self.tiles, num_rows),
                            rows,
                            panels,
                            self._codes,
                            sums,
                            num_groups,
                            self._scratch,
                            totals,
                        )
            with on_vectors:
                self.multiply_blocks(code, rows, panels, sums, num_groups, totals, count, _MAX_ROWS_ON_VECTORS)


def _multiply_int4(tiles: TileInstructions, num_rows: int, code: "Code", *values: Int) -> None:
    """Multiply `num_rows` rows with two panels, group by group. See AmxInt4Unit and Int4Unit.multiply."""
    rows, panels, codes, sums, num_groups, scratch, totals = values
    cells = [(row, panel) for row in range(num_rows) for panel in range(2)]
    results = {cell: code.variable(code.floats(0.0)) for cell in cells}
    with code.loop(0, num_groups) as group:
        _multiply_group(tiles, code, rows + group * (2 * DIGIT_ROWS * GROUP), codes + group * _GROUP_CODES, scratch)
        factors = [_factors(code, panels + (num_groups * panel + group) * GROUP_BYTES) for panel in range(2)]
        for row, panel in cells:
            place = scratch + (TOTAL_ROW * row + 4 * PANEL * panel)
            high, low = (code.load_vector(place + offset, INT32, align=64) for offset in (0, DIGIT_ROWS * TOTAL_ROW))
            group_sum = code.load_splat(sums + group * 4 + num_groups * (4 * row), FLOAT)
            scale, minimum = factors[panel]
            value = ((high << 7) + low).to_float().multiply_add(scale, results[row, panel].get())
            results[row, panel].set(group_sum.multiply_add(minimum, value))
    for (row, panel), result in results.items():
        code.store(result.get(), totals + (TOTAL_ROW * row + 4 * PANEL * panel), 4)


def _multiply_group(tiles: TileInstructions, code: "Code", rows: Int, codes: Int, scratch: Int) -> None:
    """Write the sums of one group to the scratch memory, (2 digits, 8 rows, 32 outputs) int32."""
    tiles.load(code, _X, rows, code.integer(GROUP))
    for panel in range(2):
        tiles.load(code, _W + panel, codes + GROUP * PANEL * panel, code.integer(ROW_BYTES))
        tiles.zero(code, panel)
        tiles.multiply_int8(code, panel, _X, _W + panel)
        tiles.store(code, panel, scratch + 4 * PANEL * panel, code.integer(TOTAL_ROW))


def _factors(code: "Code", record: Int) -> tuple[Vector, Vector]:
    """Load the scales and minima of a group, as float32."""
    scale, minimum = (code.load_vector(record + offset, HALF).widened(FLOAT) for offset in (0, 32))
    return scale, minimum
