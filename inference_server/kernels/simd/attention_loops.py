"""The two inner loops of decode attention, as LLVM code whose sums stay in registers: scores, and weighted values."""

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types

from inference_server.kernels.simd.vectors import (
    LANES,
    constant,
    intrinsic_of,
    loaded,
    moved,
    multiply_add,
    pointer,
    splatted,
    stored,
    sums_by_lane,
    vector,
)

KEYS_PER_UPDATE = 64  # keys between two updates of the softmax
_BYTES = LANES * 4
MAX_QUERIES = 4  # largest number of queries computed in one pass over the values
_MAX_CHUNKS = 4 if LANES == 16 else 2  # vectors of values per pass: the CPU has 32 vector registers or 16


def _accumulators(builder: Any, starts: list[Any]) -> list[Any]:
    """Return variables with these initial values. LLVM keeps them in registers."""
    variables = [cgutils.alloca_once(builder, start.type) for start in starts]
    for variable, start in zip(variables, starts, strict=True):
        builder.store(start, variable)
    return variables


@intrinsic_of(vector, types.int64, types.int64, types.int64)
def dots(builder: Any, query: Any, keys: Any, num_chunks: Any) -> Any:
    """Return the dot products of one query with LANES keys, one in each lane.

    Args:
        query: Address of (num_chunks * LANES,) float32.
        keys: Address of (num_chunks, LANES keys, LANES) float32.
        num_chunks: The width of a head in vectors.
    """
    sums = _accumulators(builder, [constant(0.0)] * LANES)
    with cgutils.for_range(builder, num_chunks) as loop:
        part = loaded(builder, moved(builder, query, (loop.index, _BYTES)), False)
        chunk = moved(builder, keys, (loop.index, LANES * _BYTES))
        for key, total in enumerate(sums):
            other = loaded(builder, moved(builder, chunk, key * _BYTES), False)
            builder.store(multiply_add(builder, part, other, builder.load(total)), total)
    return sums_by_lane(builder, [builder.load(total) for total in sums])


def _accumulate_columns(
    builder: Any,
    is_bf16: bool,
    shape: tuple[int, int],  # number of queries, number of vectors per query
    outputs: list[Any],  # addresses, by query
    scores: Any,
    values: Any,
    count: Any,
    start: Any,
) -> None:
    """Add the weighted values of some columns, from column `start` on, to the outputs of all queries."""
    size = 2 if is_bf16 else 4
    num_queries, num_chunks = shape
    places = [moved(builder, outputs[q], (start, 4), c * _BYTES) for q in range(num_queries) for c in range(num_chunks)]
    sums = _accumulators(builder, [loaded(builder, place, False) for place in places])
    with cgutils.for_range(builder, count) as loop:
        address = builder.load(pointer(builder, moved(builder, values, (loop.index, 8)), start.type))
        address = moved(builder, address, (start, size))
        weights = []
        for q in range(num_queries):
            weight = moved(builder, scores, (loop.index, 4), q * KEYS_PER_UPDATE * 4)
            weights.append(splatted(builder, builder.load(pointer(builder, weight, ir.FloatType()), align=4)))
        for c in range(num_chunks):
            value = loaded(builder, moved(builder, address, c * LANES * size), is_bf16)
            for q in range(num_queries):
                total = sums[q * num_chunks + c]
                builder.store(multiply_add(builder, weights[q], value, builder.load(total)), total)
    for place, total in zip(places, sums, strict=True):
        stored(builder, place, builder.load(total))


def _accumulate(is_bf16: bool) -> Any:
    """Return the loop for values in bfloat16 or float32."""

    @intrinsic_of(types.void, *[types.int64] * 6)
    def accumulate(
        builder: Any,
        outputs: Any,
        scores: Any,
        values: Any,
        count: Any,
        width: Any,
        num_queries: Any,
    ) -> None:
        """Compute outputs[q] += scores[q, key] * values[key] for the keys of one update.

        Args:
            outputs: Address of (num_queries, width) float32.
            scores: Address of (num_queries, KEYS_PER_UPDATE) float32.
            values: Address of (count,) int64, which are the addresses of the rows of values, (width,).
            count: The number of keys, at most KEYS_PER_UPDATE.
            width: The width of a row of values, a multiple of LANES.
            num_queries: At most MAX_QUERIES.
        """
        wide = ir.Constant(width.type, _MAX_CHUNKS * LANES)
        narrow = ir.Constant(width.type, LANES)
        whole = builder.mul(builder.udiv(width, wide), wide)
        zero = ir.Constant(width.type, 0)
        rows = [builder.add(outputs, builder.mul(width, ir.Constant(width.type, 4 * q))) for q in range(MAX_QUERIES)]
        done = builder.append_basic_block("accumulated")
        cases = builder.switch(num_queries, done)
        for number in range(1, MAX_QUERIES + 1):
            case = builder.append_basic_block(f"accumulate_{number}")
            cases.add_case(ir.Constant(width.type, number), case)
            builder.position_at_end(case)
            for chunks, start, stop, step in (
                (_MAX_CHUNKS, zero, whole, wide),
                (1, whole, width, narrow),
            ):
                with cgutils.for_range_slice(builder, start, stop, step, width.type) as (index, _):
                    _accumulate_columns(builder, is_bf16, (number, chunks), rows, scores, values, count, index)
            builder.branch(done)
        builder.position_at_end(done)

    return accumulate


accumulate_float32 = _accumulate(False)
accumulate_bf16 = _accumulate(True)
