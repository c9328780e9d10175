"""Emits matrix products with int4 weights on tile registers. Results are bit-identical to those of the vector unit."""

from functools import partial
from typing import TYPE_CHECKING

from inference_server.kernels.emit.types import FLOAT, HALF, INT8, INT32
from inference_server.kernels.emit.values import Int, Vector
from inference_server.kernels.isa.amx.products import TOTALS, W, X
from inference_server.kernels.isa.amx.tiles import CONFIG_BYTES, ROW_BYTES, TILE_ROWS, TileInstructions, write_config
from inference_server.kernels.isa.vector_int4 import Int4Unit
from inference_server.kernels.isa.vector_units import DIGIT_ROWS, GROUP, GROUP_BYTES, PANEL, TOTAL_ROW

if TYPE_CHECKING:
    from inference_server.kernels.emit.code import Code

_GROUP_CODES = 2 * GROUP * PANEL  # bytes of two panels' unpacked codes of one group
_MAX_ROWS_ON_VECTORS = 4  # rows of a batch up to which vectors multiply int4 weights faster than tiles


class AmxInt4Unit(Int4Unit):
    """Products of fixed-point rows (two int8 digits) with int4 weights: on vectors for few rows, else with tdpbssd.

    The codes of two panels are unpacked to bytes before their first use: for each group, a tile of 8 rows for each panel.
    """

    tiles = TileInstructions()

    def __init__(self, code: "Code", num_rows: Int, width: Int) -> None:
        """Allocate memory for the unpacked codes, and configure the tiles if they are used."""
        super().__init__(code, num_rows, width)
        self._uses_tiles, self._num_groups = num_rows > _MAX_ROWS_ON_VECTORS, width // GROUP
        self._codes, self._scratch = code.stack(width * (2 * PANEL)), code.stack(TOTALS)
        config = code.stack(CONFIG_BYTES)
        row_bytes = [ROW_BYTES] * X + [GROUP] * 2 + [ROW_BYTES] * 2
        write_config(code, config, row_bytes, [TILE_ROWS] * W + [GROUP // 4] * 2)
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
    tiles.load(code, X, rows, code.integer(GROUP))
    for panel in range(2):
        tiles.load(code, W + panel, codes + GROUP * PANEL * panel, code.integer(ROW_BYTES))
        tiles.zero(code, panel)
        tiles.multiply_int8(code, panel, X, W + panel)
        tiles.store(code, panel, scratch + 4 * PANEL * panel, code.integer(TOTAL_ROW))


def _factors(code: "Code", record: Int) -> tuple[Vector, Vector]:
    """Load the scales and minima of a group, as float32."""
    scale, minimum = (code.load_vector(record + offset, HALF).widened(FLOAT) for offset in (0, 32))
    return scale, minimum
