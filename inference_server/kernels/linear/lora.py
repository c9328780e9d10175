"""Adds LoRA adapters to a linear layer's results: result += up · (down · x). Each row can have a different adapter.

The kernel runs after the layer's kernel, and does not read the layer's weights. A layer has one or several parts, such
as q, k and v, and each part has its own matrices. `down` is (rank, inputs), `up` (outputs, rank). Both are stored as
float16, in the order in which the kernel reads them:

- `down`: for every 4 ranks and 16 inputs, (4 ranks, 16 inputs)
- `up`: for every panel of 16 outputs, (rank, 16 outputs)

A row's products are summed in a fixed order, so its result does not depend on the other rows or on the number of
threads.

The argument block (int64 words):

- word 0: work items of the second phase taken
- word 1: work items of the first phase taken
- word 2: work items of the first phase done
- word 3: activations, (rows, inputs)
- word 4: result of the layer, (rows, outputs)
- word 5: the adapter of each row, int32, from 1; 0 for none
- word 6: table of matrices. An entry has the addresses of `down` and `up`, the rank, and a factor on the result. The rank is a
  multiple of 4, or 0 for no matrices. The factor is a float32 in the low bits. An adapter has an entry for each part.
- word 7: number of rows
- word 8: number of inputs
- word 9: outputs in a row of the result, a multiple of 16
- word 10: number of parts
- word 11: table of parts: for each part its first panel and its number of panels
- word 12: scratch memory, (rows, parts, largest rank) float32
- word 13: the largest rank
- word 14: for a gated layer, the gated result, (rows, outputs / 2)
- word 21: number of threads

The result of a gated layer alternates between 16 gate outputs and the 16 matching up outputs. Its parts are gate and
up. The kernel computes silu(gate) * up of all rows, including those without an adapter.
"""

from inference_server.kernels.emit.block_words import THREADS_WORD
from inference_server.kernels.emit.code import Code
from inference_server.kernels.emit.elements import element_bytes, load, rounded, store
from inference_server.kernels.emit.module import Emit
from inference_server.kernels.emit.types import FLOAT, HALF
from inference_server.kernels.emit.values import Int, Vector
from inference_server.kernels.emit.waiting import wait_until_done
from inference_server.kernels.isa.vector_units import PANEL
from inference_server.kernels.linear.workspace import LORA_RANKS
from inference_server.kernels.rows.silu import gated

_RECORD = 32  # bytes of an entry of the table of matrices
_PART = 16  # bytes of an entry of the table of parts
_HALF_BYTES = 2
_RUNS_PER_THREAD = 2


class _Arguments:
    """The words of the argument block."""

    def __init__(self, code: Code, block: Int, is_bf16: bool) -> None:
        self.block, self.is_bf16, self.size = block, is_bf16, element_bytes(is_bf16)
        self.x, self.out, self.adapters, self.table = (code.argument(block, index) for index in range(3, 7))
        self.num_rows, self.width, self.num_outputs = (code.argument(block, index) for index in range(7, 10))
        self.num_parts, self.parts, self.scratch, self.max_rank = (
            code.argument(block, index) for index in range(10, 14)
        )
        self.gated = code.argument(block, 14)
        self.runs = (code.argument(block, THREADS_WORD) * _RUNS_PER_THREAD).maximum(1)

    def adapter(self, code: Code, row: Int) -> Int:
        """Load the number of a row's adapter, from 1; 0 for none."""
        return code.load_int32(self.adapters + row * 4)

    def record(self, adapter: Int, part: Int | int) -> Int:
        """Return the address of the table's entry for an adapter, from 1, and a part."""
        return self.table + ((adapter - 1) * self.num_parts + part) * _RECORD

    def sums(self, row: Int, part: Int | int) -> Int:
        """Return the address of down · x of a row and a part."""
        return self.scratch + (row * self.num_parts + part) * self.max_rank * 4


def make_lora(is_gated: bool, is_bf16: bool) -> Emit:
    """Return the function that emits the kernel.

    Args:
        is_gated: True if the parts are gate and up, and the kernel computes silu(gate) * up.
        is_bf16: True if activations and results are bfloat16, False for float32.
    """

    def lora(code: Code, block: Int) -> None:
        arguments = _Arguments(code, block, is_bf16)
        _multiply_down(code, arguments)
        if is_gated:
            _gate(code, arguments)
        else:
            _add_up(code, arguments)

    return lora


def _half_floats(code: Code, address: Int) -> Vector:
    return code.load_vector(address, HALF, PANEL, 2 * PANEL).widened(FLOAT)


def _multiply_down(code: Code, a: _Arguments) -> None:
    """Compute down · x of all rows with an adapter. Returns when all threads have finished."""
    num_items = a.num_rows * a.num_parts
    num_runs = a.runs.minimum(num_items)
    with code.work_items(a.block + 8, num_runs) as run:
        with code.loop(run * num_items // num_runs, (run + 1) * num_items // num_runs) as item:
            row, part = item // a.num_parts, item % a.num_parts
            adapter = a.adapter(code, row)
            with code.when(adapter > 0):
                record = a.record(adapter, part)
                _multiply_row(code, a, record, a.x + row * a.width * a.size, a.sums(row, part))
        code.count_done(a.block + 16)
    wait_until_done(code, a.block + 16, num_runs)


def _multiply_row(code: Code, a: _Arguments, record: Int, x: Int, sums: Int) -> None:
    """Write down · x of one row and one part, multiplied by the factor on the result."""
    down, rank = code.load_int64(record), code.load_int64(record + 16)
    factor = code.load_float(record + 24)
    group_bytes = a.width * (LORA_RANKS * _HALF_BYTES)
    with code.loop(0, rank, LORA_RANKS) as first:
        weights = down + first // LORA_RANKS * group_bytes
        totals = [code.variable(code.floats(0.0)) for _ in range(LORA_RANKS)]
        with code.loop(0, a.width, PANEL) as column:
            values = load(code, x + column * a.size, a.is_bf16)
            place = weights + column * (LORA_RANKS * _HALF_BYTES)
            for index, total in enumerate(totals):
                row = _half_floats(code, place + index * PANEL * _HALF_BYTES)
                total.set(row.multiply_add(values, total.get()))
        for index, total in enumerate(totals):
            code.store(total.get().sum() * factor, sums + first * 4 + 4 * index, 4)


def _product(code: Code, up: Int, rank: Int, sums: Int, start: Vector) -> Vector:
    """Return start + up · sums for one panel. `up`: address of the panel's weights."""
    total, second = code.variable(start), code.variable(code.floats(0.0))
    with code.loop(0, rank, LORA_RANKS) as first:
        for index in range(LORA_RANKS):
            weights = _half_floats(code, up + first * (PANEL * _HALF_BYTES) + index * (PANEL * _HALF_BYTES))
            factor = code.load_splat(sums + first * 4 + 4 * index, FLOAT)
            into = second if index % 2 else total
            into.set(weights.multiply_add(factor, into.get()))
    result: Vector = total.get() + second.get()
    return result


def _add_up(code: Code, a: _Arguments) -> None:
    """Add up · (down · x) to the result. The threads share the work by part and panel."""
    with code.work_items(a.block, a.num_parts * a.runs) as item:
        part, run = item // a.runs, item % a.runs
        place = a.parts + part * _PART
        first, count = code.load_int64(place), code.load_int64(place + 8)
        start, stop = run * count // a.runs, (run + 1) * count // a.runs
        with code.when(start < stop), code.loop(0, a.num_rows) as row:
            adapter = a.adapter(code, row)
            with code.when(adapter > 0):
                record = a.record(adapter, part)
                up, rank, sums = code.load_int64(record + 8), code.load_int64(record + 16), a.sums(row, part)
                out = a.out + (row * a.num_outputs + first * PANEL) * a.size
                with code.when(rank > 0), code.loop(start, stop) as panel:
                    target = out + panel * (PANEL * a.size)
                    weights = up + panel * rank * (PANEL * _HALF_BYTES)
                    value = _product(code, weights, rank, sums, load(code, target, a.is_bf16))
                    store(code, value, target, a.is_bf16)


def _gate(code: Code, a: _Arguments) -> None:
    """Write silu(gate) * up of all rows, after adding the adapters' products to both.

    Threads share the work by panel.
    """
    count = a.num_outputs // (2 * PANEL)
    num_runs = a.runs.minimum(count)
    with code.work_items(a.block, num_runs) as run:
        start, stop = run * count // num_runs, (run + 1) * count // num_runs
        with code.loop(0, a.num_rows) as row:
            adapter = a.adapter(code, row)
            source, target = a.out + row * a.num_outputs * a.size, a.gated + row * (count * PANEL) * a.size
            with code.either(adapter > 0) as cases:
                with_adapter, without = cases
                with with_adapter:
                    halves = [a.record(adapter, part) for part in range(2)]
                    ups = [code.load_int64(record + 8) for record in halves]
                    ranks = [code.load_int64(record + 16) for record in halves]
                    with code.loop(start, stop) as panel:
                        values = []
                        for part, (up, rank) in enumerate(zip(ups, ranks, strict=True)):
                            value = load(code, source + (panel * 2 + part) * (PANEL * a.size), a.is_bf16)
                            weights = up + panel * rank * (PANEL * _HALF_BYTES)
                            values.append(_product(code, weights, rank, a.sums(row, part), value))
                        _store_gated(code, a, values, target + panel * (PANEL * a.size))
                with without, code.loop(start, stop) as panel:
                    place = source + panel * (2 * PANEL * a.size)
                    values = [load(code, place + part * PANEL * a.size, a.is_bf16) for part in range(2)]
                    _store_gated(code, a, values, target + panel * (PANEL * a.size))


def _store_gated(code: Code, a: _Arguments, values: list[Vector], place: Int) -> None:
    gate, up = (rounded(code, value, a.is_bf16) for value in values)
    store(code, gated(code, gate, up, a.is_bf16), place, a.is_bf16)
