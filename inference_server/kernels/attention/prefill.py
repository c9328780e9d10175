"""Emits the kernel of prefill attention: consecutive tokens of several sequences attend over their keys and values.

First the threads copy the values into tiles. After that, a work item is one head of a group of 32 queries. The online
softmax computes the scores of KEYS_PER_UPDATE keys, their weights, and the weighted values. All matrices are
transposed, with one query in each lane of a vector. So keys are read directly from the cache, and a query's sums need
no additions across lanes. The first update begins at the sequence's first key, so a token's result does not depend
on how its prompt is chunked.

Scores are (keys, 32 queries) float32, weights bfloat16, outputs (head_dim, 32 queries) float32.
The argument block is described in jit/arguments.py.
"""

from inference_server.kernels.attention import prefill_softmax as softmax
from inference_server.kernels.attention.prefill_softmax import ROW_BYTES
from inference_server.kernels.attention.transposition import TILE_BYTES, transpose, transpose_pairs
from inference_server.kernels.emit.code import Code
from inference_server.kernels.emit.elements import element_bytes, load, store
from inference_server.kernels.emit.module import Emit
from inference_server.kernels.emit.values import Int
from inference_server.kernels.emit.waiting import wait_until_done
from inference_server.kernels.isa.vector_units import Bf16Unit

QUERIES = 32  # queries of a work item
KEYS = 32  # keys of a piece, whose values are packed together; a block of the cache holds whole pieces
KEYS_PER_UPDATE = 128  # keys between two updates of the softmax
_SEGMENTS, _SEGMENT = 32, 48  # bytes of the table's header, and of each segment
_PIECE, _GROUP = 32, 40  # byte offsets, in a segment's entry, of the numbers of its first piece and first query group


class _Arguments:
    """The words of the argument block, and of the header of the segment table (arguments.prefill_segments)."""

    def __init__(self, code: Code, block: Int, is_bf16: bool) -> None:
        self.block = block
        self.query, self.keys, self.values = (code.argument(block, index) for index in (3, 4, 5))
        self.segments, self.out = code.argument(block, 6), code.argument(block, 7)
        self.num_heads, self.num_kv_heads, self.width = (code.argument(block, index) for index in (8, 9, 10))
        self.block_size, self.scaling = code.argument(block, 11), code.float_argument(block, 12)
        self.sinks = code.argument(block, 13)  # 0 if there are none
        self.workspace = code.load_int64(self.segments)
        self.num_pieces = code.load_int64(self.segments + 16)
        self.num_groups = code.load_int64(self.segments + 24)
        self.is_bf16 = is_bf16
        self.cache_stride = self.num_kv_heads * self.width * 2  # bytes from key to key, and from value to value
        self.stride = self.num_heads * self.width * element_bytes(is_bf16)  # bytes from query to query

    def cache_offset(self, code: Code, table: Int, position: Int) -> Int:
        """Return the offset, in bytes, of a position's row in the cache."""
        block = position // self.block_size
        return (code.load_int32(table + block * 4) * self.block_size + position % self.block_size) * self.cache_stride

    def find_segment(self, code: Code, index: Int, place: int) -> Int:
        """Return the address of the entry of the segment that contains the piece or group `index`.

        `place`: _PIECE or _GROUP.
        """
        last = self.segments + (_SEGMENTS - _SEGMENT) + code.load_int64(self.segments + 8) * _SEGMENT
        found = code.variable(last)
        with code.repeat_while(lambda: code.load_int64(found.get() + place) > index):
            found.set(found.get() - _SEGMENT)
        segment: Int = found.get()
        return segment


class _Scratch:
    """Addresses of a thread's own memory: 32 queries and their intermediate results."""

    def __init__(self, code: Code, width: Int) -> None:
        self.rows, self.queries = code.stack(width * (2 * QUERIES)), code.stack(width * (2 * QUERIES))
        self.outputs, self.state = code.stack(width * ROW_BYTES), code.stack(2 * ROW_BYTES)
        self.scores = code.stack(KEYS_PER_UPDATE * ROW_BYTES)
        self.weights = code.stack(KEYS_PER_UPDATE // KEYS * 2 * TILE_BYTES)
        self.tile = code.stack(TILE_BYTES)


def make_prefill_attention(is_bf16: bool) -> Emit:
    """Return the function that emits the prefill attention kernel, for keys and values in bfloat16.

    `is_bf16`: True if queries and result are bfloat16, False for float32.
    """

    def prefill_attention(code: Code, block: Int) -> None:
        arguments = _Arguments(code, block, is_bf16)
        scratch = _Scratch(code, arguments.width)
        unit = code.isa.bf16_unit(code, QUERIES)
        _pack_values(code, arguments)
        unit.use_whole(code)
        num_heads, size = arguments.num_heads, element_bytes(is_bf16)
        with code.work_items(block, num_heads * arguments.num_groups) as item:
            # The last tokens have the most keys. Starting with them lets all threads finish at similar times.
            group, head = arguments.num_groups - 1 - item // num_heads, item % num_heads
            segment = arguments.find_segment(code, group, _GROUP)
            first = (group - code.load_int64(segment + _GROUP)) * QUERIES
            count = (code.load_int64(segment + 8) - first).minimum(QUERIES)
            place = (code.load_int64(segment) + first) * arguments.stride + head * arguments.width * size
            _start_item(code, arguments, scratch, arguments.query + place, count)
            with code.when(arguments.sinks > 0):
                for half in range(2):
                    softmax.set_sink(code, scratch.state + 64 * half, arguments.sinks + head * 4)
            kv_head = head // (num_heads // arguments.num_kv_heads)
            _attend(code, arguments, scratch, unit, segment, kv_head, first, count)
            _finish_item(code, arguments, scratch, arguments.out + place, count)
        unit.release(code)

    return prefill_attention


def _pack_values(code: Code, arguments: _Arguments) -> None:
    """Pack the values into width / 16 tiles for each KV head and 32 keys. Returns when all threads have finished."""
    width, num_items = arguments.width, arguments.num_kv_heads * arguments.num_pieces
    with code.work_items(arguments.block + 8, num_items) as item:
        head, piece = item // arguments.num_pieces, item % arguments.num_pieces
        segment = arguments.find_segment(code, piece, _PIECE)
        first = (piece - code.load_int64(segment + _PIECE)) * KEYS
        offset = arguments.cache_offset(code, code.load_int64(segment + 24), first)
        source = arguments.values + offset + head * width * 2
        count = code.load_int64(segment + 16) + code.load_int64(segment + 8) - first
        target = arguments.workspace + item * width * (2 * KEYS)
        with code.loop(0, width, 16) as column:
            tile = target + column * (TILE_BYTES // 16)
            transpose_pairs(code, source + column * 2, arguments.cache_stride, count, tile)
        code.count_done(arguments.block + 16)
    wait_until_done(code, arguments.block + 16, num_items)


def _start_item(code: Code, arguments: _Arguments, scratch: _Scratch, source: Int, count: Int) -> None:
    """Store 32 queries as tiles, the last one repeated if there are fewer, and reset outputs and state."""
    width, size = arguments.width, element_bytes(arguments.is_bf16)
    with code.loop(0, QUERIES) as row:
        query, target = source + row.minimum(count - 1) * arguments.stride, scratch.rows + row * width * 2
        with code.loop(0, width, 16) as index:
            store(code, load(code, query + index * size, arguments.is_bf16), target + index * 2, True)
    with code.loop(0, QUERIES, 16) as row:
        source, target = scratch.rows + row * width * 2, scratch.queries + row * width * 2
        with code.loop(0, width * 2, 64) as offset:
            code.call("transpose", transpose, source + offset, width * 2, target + offset * 16)
    for half in range(2):
        softmax.reset(code, scratch.state + 64 * half)
    with code.loop(0, width * ROW_BYTES, 64) as offset:
        code.store(code.floats(0.0), scratch.outputs + offset, 64)


def _finish_item(code: Code, arguments: _Arguments, scratch: _Scratch, target: Int, count: Int) -> None:
    """Divide the outputs by the sums of weights, and write the result of `count` queries."""
    width, size = arguments.width, element_bytes(arguments.is_bf16)
    with code.loop(0, count, 16) as first:
        outputs = scratch.outputs + first * 4
        factor = 1.0 / softmax.sums_of_weights(code, scratch.state + first * 4)
        with code.loop(0, width * ROW_BYTES, ROW_BYTES) as offset:
            code.store(code.load_floats(outputs + offset) * factor, outputs + offset, 64)
        with code.loop(0, width, 16) as column:
            source = outputs + column * ROW_BYTES
            code.call("transpose", transpose, source, code.integer(ROW_BYTES), scratch.tile)
            with code.loop(0, (count - first).minimum(16)) as row:
                place = target + (first + row) * arguments.stride + column * size
                store(code, code.load_floats(scratch.tile + row * 64), place, arguments.is_bf16)


def _attend(
    code: Code,
    arguments: _Arguments,
    scratch: _Scratch,
    unit: Bf16Unit,
    segment: Int,
    kv_head: Int,
    first_query: Int,
    count: Int,
) -> None:
    """Attend with `count` queries, beginning with query `first_query` of a segment, over all keys up to their own."""
    width, table = arguments.width, code.load_int64(segment + 24)
    position = code.load_int64(segment + 16) + first_query
    keys, stride = arguments.keys + kv_head * width * 2, arguments.cache_stride
    piece = kv_head * arguments.num_pieces + code.load_int64(segment + _PIECE)
    values, end = arguments.workspace + piece * width * (2 * KEYS), position + count
    with code.loop(0, end, KEYS_PER_UPDATE) as first:
        num_keys = (end - first + (KEYS - 1)).minimum(KEYS_PER_UPDATE) // KEYS * KEYS
        with code.loop(0, num_keys, KEYS) as key:
            source = keys + arguments.cache_offset(code, table, first + key)
            queries = (scratch.queries, TILE_BYTES, width * 32)
            unit.multiply(
                code,
                (source, stride, 64),
                queries,
                width // 32,
                scratch.scores + key * ROW_BYTES,
                KEYS,
                are_cached=True,
            )
        with code.loop(0, QUERIES, 16) as query:
            softmax.update(
                code,
                scratch.scores + query * 4,
                scratch.weights + query * (TILE_BYTES // 16),
                first,
                num_keys,
                arguments.scaling,
                position + query,
                scratch.state + query * 4,
                scratch.outputs + query * 4,
                width,
            )
        with code.loop(0, width, 32) as column:
            x = (values + first * width * 2 + column * 64, 64, width * (2 * KEYS))
            weights, outputs = (scratch.weights, 2 * TILE_BYTES, TILE_BYTES), scratch.outputs + column * ROW_BYTES
            unit.multiply(code, x, weights, num_keys // KEYS, outputs, 32, adds=True, are_cached=True)
