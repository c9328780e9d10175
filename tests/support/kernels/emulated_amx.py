"""Tile registers in Python, so that the AMX kernels can be tested on every CPU.

A kernel calls Python for each tile instruction, and runs on this CPU otherwise. Instructions check the shapes of their
tiles as the CPU would, after "Intel 64 and IA-32 Architectures Software Developer's Manual".
"""

import ctypes
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from inference_server.kernels.emit.types import INT64
from inference_server.kernels.isa.amx.instruction_set import Amx
from inference_server.kernels.isa.amx.tiles import NUM_TILES, ROW_BYTES, TILE_ROWS, TileInstructions
from inference_server.kernels.isa.instruction_set import InstructionSet

Bytes = NDArray[np.uint8]


class EmulatedTiles(TileInstructions):
    """Tile registers that are numpy arrays.

    Attributes:
        faults: The exceptions that instructions raised: a CPU would have ended the process.
        counts: How often each instruction ran.
        forbidden: Addresses that no tile may be loaded from.
    """

    def __init__(self) -> None:
        self.faults: list[Exception] = []
        self.counts: Counter[str] = Counter()
        self.forbidden = range(0)
        self._shapes: list[tuple[int, int]] | None = None  # of each tile, rows and bytes of a row
        self._tiles = np.zeros((NUM_TILES, TILE_ROWS, ROW_BYTES), np.uint8)
        self._callbacks: dict[str, Any] = {}

    def _call(self, code: Any, name: str, *operands: Any) -> None:
        words = [
            code.builder.ptrtoint(each, INT64) if each.type.is_pointer else code.builder.zext(each, INT64)
            for each in operands
        ]
        address = ir.Constant(INT64, self._address(name, len(words)))
        signature = ir.FunctionType(ir.VoidType(), [INT64] * len(words))
        code.builder.call(code.builder.inttoptr(address, signature.as_pointer()), words)

    def _address(self, name: str, num_operands: int) -> int:
        if name not in self._callbacks:
            method: Callable[..., None] = getattr(self, f"_{name}")

            def run(*operands: int) -> None:
                self.counts[name] += 1
                try:
                    method(*operands)
                except Exception as error:
                    self.faults.append(error)

            self._callbacks[name] = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * num_operands)(run)
        return int(ctypes.cast(self._callbacks[name], ctypes.c_void_p).value or 0)

    def _tile(self, number: int) -> Bytes:
        """Return a tile's contents, (rows, bytes of a row)."""
        if self._shapes is None:
            raise RuntimeError("tiles are not configured")
        rows, columns = self._shapes[number]
        return self._tiles[number, :rows, :columns]

    def _ldtilecfg(self, address: int) -> None:
        config = np.frombuffer((ctypes.c_uint8 * 64).from_address(address), np.uint8)
        columns, rows = config[16:32].view(np.uint16).tolist(), config[48:56].tolist()
        if config[0] != 1 or config[1:16].any() or config[32:48].any() or config[56:].any():
            raise ValueError(f"a configuration with reserved bytes: {config.tolist()}")
        if not all(0 < count <= TILE_ROWS for count in rows) or not all(0 < size <= ROW_BYTES for size in columns):
            raise ValueError(f"a configuration with rows {rows} and bytes {columns}")
        self._shapes = list(zip(rows, columns, strict=True))
        self._tiles[:] = 0

    def _tilerelease(self) -> None:
        self._shapes = None

    def _tilezero(self, number: int) -> None:
        self._tile(number)[:] = 0

    def _memory(self, number: int, address: int, stride: int) -> Bytes:
        """Return the memory that a tile is loaded from or stored to."""
        rows, columns = self._tile(number).shape
        memory = (ctypes.c_uint8 * (stride * (rows - 1) + columns)).from_address(address)
        return as_strided(np.frombuffer(memory, np.uint8), (rows, columns), (stride, 1))

    def _tileloadd64(self, number: int, address: int, stride: int) -> None:
        if any(address + row * stride in self.forbidden for row in range(len(self._tile(number)))):
            raise ValueError(f"tile {number} is loaded from memory beyond the rows")
        self._tile(number)[:] = self._memory(number, address, stride)

    def _tilestored64(self, number: int, address: int, stride: int) -> None:
        self._memory(number, address, stride)[:] = self._tile(number)

    def _operands(self, *numbers: int) -> tuple[Bytes, Bytes, Bytes]:
        """Return three tiles, if a product of them is allowed."""
        total, rows, weights = (self._tile(number) for number in numbers)
        shapes = total.shape, rows.shape, weights.shape
        fits = (len(rows), weights.shape[1], rows.shape[1]) == (len(total), total.shape[1], 4 * len(weights))
        if len(set(numbers)) < 3 or not fits or any(columns % 4 for _, columns in shapes):
            raise ValueError(f"a product of tiles {numbers} with rows and bytes {shapes}")
        return total, rows, weights

    def _tdpbssd(self, total: int, rows: int, weights: int) -> None:
        result, x, w = self._operands(total, rows, weights)
        fours = w.view(np.int8).reshape(len(w), -1, 4).transpose(0, 2, 1).reshape(4 * len(w), -1)
        result.view(np.int32)[:] += x.view(np.int8).astype(np.int32) @ fours.astype(np.int32)

    def _tdpbf16ps(self, total: int, rows: int, weights: int) -> None:
        """Multiply and add in float32. Even and odd inputs have sums of their own. Denormals are zeros."""
        result, x, w = self._operands(total, rows, weights)
        inputs, pairs = _widened(x).reshape(len(x), -1, 2), _widened(w).reshape(len(w), -1, 2)
        sums = np.zeros((len(x), pairs.shape[1], 2), np.float32)
        for step in range(len(w)):
            sums = _flushed(sums + _flushed(inputs[:, step, None] * pairs[step]))
        values = result.view(np.float32)
        values[:] = _flushed(_flushed(values) + _flushed(sums[..., 0] + sums[..., 1]))


def _widened(tile: Bytes) -> NDArray[np.float32]:
    """Return the bfloat16 of a tile as float32."""
    bits = tile.view(np.uint16).astype(np.uint32) << np.uint32(16)
    return _flushed(bits.view(np.float32))


def _flushed(values: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.where(np.abs(values) < np.finfo(np.float32).tiny, np.float32(0), values)


def emulated_amx(base: InstructionSet) -> tuple[InstructionSet, EmulatedTiles]:
    """Return an instruction set with AMX's units, whose vectors are those of `base`, and its tiles."""
    tiles = EmulatedTiles()
    units = {
        name: type(f"Emulated{unit.__name__}", (unit,), {"tiles": tiles})
        for name, unit in (("bf16_unit", Amx.bf16_unit), ("int8_unit", Amx.int8_unit), ("int4_unit", Amx.int4_unit))
    }
    isa = type("EmulatedAmx", (type(base),), {"unsigned_codes": Amx.unsigned_codes, **units})
    return isa(), tiles
