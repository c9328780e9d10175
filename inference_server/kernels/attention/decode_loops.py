"""Emits the two inner loops of decode attention, whose sums stay in registers: scores, and weighted values.

The loops compute with vectors that have as many lanes as the CPU's registers.
"""

from inference_server.kernels.emit.code import Code
from inference_server.kernels.emit.elements import element_bytes, load
from inference_server.kernels.emit.types import FLOAT
from inference_server.kernels.emit.values import Int, Vector

KEYS_PER_UPDATE = 64  # keys between two updates of the softmax
MAX_QUERIES = 4  # largest number of queries computed in one pass over the values


def keys_at_once(code: Code) -> int:
    """Return the number of keys in a call of `dots`: a multiple of the lanes, and at least 8.

    Eight independent sums hide the latency of additions.
    """
    return max(code.isa.lanes, 8)


def dots(code: Code, query: Int, keys: Int, num_chunks: Int) -> list[Vector]:
    """Return the dot products of one query with `keys_at_once` keys, one in each lane.

    Args:
        code: The function to append to.
        query: Address of (num_chunks * lanes,) float32.
        keys: Address of (num_chunks, keys_at_once, lanes) float32.
        num_chunks: The width of a head in vectors.
    """
    lanes, num_keys = code.isa.lanes, keys_at_once(code)
    sums = [code.variable(code.floats(0.0, lanes)) for _ in range(num_keys)]
    with code.loop(0, num_chunks) as chunk:
        part = code.load_floats(query + chunk * (4 * lanes), lanes)
        for key, total in enumerate(sums):
            other = code.load_floats(keys + chunk * (4 * lanes * num_keys) + 4 * lanes * key, lanes)
            total.set(part.multiply_add(other, total.get()))
    vectors = [total.get() for total in sums]
    return [_sums_by_lane(vectors[first : first + lanes]) for first in range(0, num_keys, lanes)]


def _sums_by_lane(vectors: list[Vector]) -> Vector:
    """Return a vector whose lane i is the sum of all lanes of vector i. There are as many vectors as lanes.

    Each round combines pairs of vectors into one. A blend takes half of the lanes of each, a shuffle moves the other
    halves to the same lanes, and the two results are added.
    """
    lanes = len(vectors)
    stride = lanes // 2
    while stride:
        keep = [lane if not lane & stride else lanes + lane for lane in range(lanes)]
        align = [lane ^ stride if not lane & stride else lanes + (lane ^ stride) for lane in range(lanes)]
        vectors = [
            a.shuffled(keep, b) + a.shuffled(align, b) for a, b in zip(vectors[:stride], vectors[stride:], strict=True)
        ]
        stride //= 2
    return vectors[0]


def accumulate(
    code: Code, outputs: Int, weights: Int, rows: Int, count: Int, width: Int, num_queries: Int, is_bf16: bool
) -> None:
    """Emit outputs[q] += weights[q, key] * values[key] for the keys of one update.

    Args:
        code: The function to append to.
        outputs: Address of (num_queries, width) float32.
        weights: Address of (num_queries, KEYS_PER_UPDATE) float32.
        rows: Address of (count,) int64: the address of each key's row of values, (width,).
        count: The number of keys, at most KEYS_PER_UPDATE.
        width: The width of a row of values, a multiple of 16.
        num_queries: 1 to MAX_QUERIES.
        is_bf16: True if values are bfloat16, False for float32.
    """
    for number in range(1, MAX_QUERIES + 1):
        with code.when(num_queries.equals(number)):
            code.call(
                f"accumulate_{number}",
                lambda inner, *values, number=number: _accumulate(inner, number, is_bf16, *values),
                *(outputs, weights, rows, count, width),
            )


def _accumulate(code: Code, num_queries: int, is_bf16: bool, *values: Int) -> None:
    outputs, weights, rows, count, width = values
    lanes = code.isa.lanes
    wide = lanes * (2 if lanes == 8 else 4)  # AVX2, with 8 lanes, has 16 registers; the others have 32
    whole = width // wide * wide
    with code.loop(0, whole, wide) as start:
        _accumulate_columns(code, num_queries, wide // lanes, is_bf16, start, *values)
    with code.loop(whole, width, lanes) as start:
        _accumulate_columns(code, num_queries, 1, is_bf16, start, *values)


def _accumulate_columns(code: Code, num_queries: int, num_chunks: int, is_bf16: bool, start: Int, *values: Int) -> None:
    """Add the weighted values of `num_chunks` vectors of columns, from column `start` on, to the outputs of all queries."""
    outputs, weights, rows, count, width = values
    lanes, size = code.isa.lanes, element_bytes(is_bf16)
    cells = [(query, chunk) for query in range(num_queries) for chunk in range(num_chunks)]
    places = [outputs + (width * query + start) * 4 + 4 * lanes * chunk for query, chunk in cells]
    sums = {cell: code.variable(code.load_floats(place, lanes)) for cell, place in zip(cells, places, strict=True)}
    with code.loop(0, count) as key:
        address = code.load_int64(rows + key * 8) + start * size
        factors = [
            code.load_splat(weights + key * 4 + 4 * KEYS_PER_UPDATE * query, FLOAT, lanes)
            for query in range(num_queries)
        ]
        for chunk in range(num_chunks):
            value = load(code, address + chunk * lanes * size, is_bf16, lanes)
            for query, factor in enumerate(factors):
                total = sums[query, chunk]
                total.set(factor.multiply_add(value, total.get()))
    for total, place in zip(sums.values(), places, strict=True):
        code.store(total.get(), place, 4)
