"""The two inner loops of attention, as LLVM code whose accumulators stay in registers."""

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

TILE = 64  # keys between two looks at the largest score
_BYTES = LANES * 4
MOST_QUERIES = 4
_MOST_CHUNKS = 4 if LANES == 16 else 2  # vectors of values in registers at once: there are 32 or 16 registers


def _accumulators(builder: Any, starts: list[Any]) -> list[Any]:
    """Variables on the stack, which LLVM makes registers."""
    variables = [cgutils.alloca_once(builder, start.type) for start in starts]
    for variable, start in zip(variables, starts, strict=True):
        builder.store(start, variable)
    return variables


@intrinsic_of(vector, types.int64, types.int64, types.int64)
def dots(builder: Any, query: Any, keys: Any, num_chunks: Any) -> Any:
    """The products of one query with LANES keys, one in each lane.

    `query` is (num_chunks * LANES,) float32, `keys` (num_chunks, LANES keys, LANES) float32.
    """
    sums = _accumulators(builder, [constant(0.0)] * LANES)
    with cgutils.for_range(builder, num_chunks) as loop:
        part = loaded(builder, moved(builder, query, (loop.index, _BYTES)), False)
        chunk = moved(builder, keys, (loop.index, LANES * _BYTES))
        for key, total in enumerate(sums):
            other = loaded(builder, moved(builder, chunk, key * _BYTES), False)
            builder.store(multiply_add(builder, part, other, builder.load(total)), total)
    return sums_by_lane(builder, [builder.load(total) for total in sums])


def _weigh_columns(
    builder: Any,
    is_bf16: bool,
    shape: tuple[int, int],  # queries, vectors of each
    outputs: list[Any],  # addresses, by query
    scores: Any,
    values: Any,
    count: Any,
    start: Any,
) -> None:
    size = 2 if is_bf16 else 4
    num_queries, num_chunks = shape
    places = [moved(builder, outputs[q], (start, 4), c * _BYTES) for q in range(num_queries) for c in range(num_chunks)]
    sums = _accumulators(builder, [loaded(builder, place, False) for place in places])
    with cgutils.for_range(builder, count) as loop:
        address = builder.load(pointer(builder, moved(builder, values, (loop.index, 8)), start.type))
        address = moved(builder, address, (start, size))
        weights = []
        for q in range(num_queries):
            weight = moved(builder, scores, (loop.index, 4), q * TILE * 4)
            weights.append(splatted(builder, builder.load(pointer(builder, weight, ir.FloatType()), align=4)))
        for c in range(num_chunks):
            value = loaded(builder, moved(builder, address, c * LANES * size), is_bf16)
            for q in range(num_queries):
                total = sums[q * num_chunks + c]
                builder.store(multiply_add(builder, weights[q], value, builder.load(total)), total)
    for place, total in zip(places, sums, strict=True):
        stored(builder, place, builder.load(total))


def _weigh(is_bf16: bool) -> Any:
    @intrinsic_of(types.void, *[types.int64] * 6)
    def weigh(
        builder: Any,
        outputs: Any,
        scores: Any,
        values: Any,
        count: Any,
        width: Any,
        num_queries: Any,
    ) -> None:
        """outputs[q] += scores[q, key] * values[key], for the `count` keys of a tile and at most 4 queries.

        `outputs` is (num_queries, width) float32, `scores` (num_queries, TILE) float32, `values` (count,) int64, the
        addresses of rows (width,).
        """
        wide = ir.Constant(width.type, _MOST_CHUNKS * LANES)
        narrow = ir.Constant(width.type, LANES)
        whole = builder.mul(builder.udiv(width, wide), wide)
        zero = ir.Constant(width.type, 0)
        rows = [builder.add(outputs, builder.mul(width, ir.Constant(width.type, 4 * q))) for q in range(MOST_QUERIES)]
        done = builder.append_basic_block("weighed")
        cases = builder.switch(num_queries, done)
        for number in range(1, MOST_QUERIES + 1):
            case = builder.append_basic_block(f"weigh_{number}")
            cases.add_case(ir.Constant(width.type, number), case)
            builder.position_at_end(case)
            for chunks, start, stop, step in (
                (_MOST_CHUNKS, zero, whole, wide),
                (1, whole, width, narrow),
            ):
                with cgutils.for_range_slice(builder, start, stop, step, width.type) as (index, _):
                    _weigh_columns(builder, is_bf16, (number, chunks), rows, scores, values, count, index)
            builder.branch(done)
        builder.position_at_end(done)

    return weigh


weigh_float32 = _weigh(False)
weigh_bf16 = _weigh(True)
