"""Emits the kernel of decode attention: one new token of each sequence attends over the sequence's keys and values.

A work item is one sequence and one KV head, with the `group` of query heads that share this KV head. The keys are read
once, KEYS_PER_UPDATE of them at a time, with an online softmax. For each head, the kernel keeps the largest score so
far, and relative to this score the sum of weights and the weighted values. One thread computes an item, in an order
that depends on the sequence's length only. So the result depends neither on other sequences nor on the number of
threads.
"""

from dataclasses import dataclass

import numpy as np

from inference_server.kernels.attention.decode_loops import KEYS_PER_UPDATE, MAX_QUERIES, accumulate, dots, keys_at_once
from inference_server.kernels.emit.code import Code
from inference_server.kernels.emit.elements import element_bytes, exp, load, store
from inference_server.kernels.emit.module import Emit
from inference_server.kernels.emit.types import INT32
from inference_server.kernels.emit.values import Float, Int, Vector

_LOWEST = float(np.float32(-1e30))  # below every score, and finite: the difference of two infinities would be NaN


class _Arguments:
    """The words of the argument block (jit/arguments.py)."""

    def __init__(self, code: Code, block: Int) -> None:
        self.query, self.keys, self.values = (code.argument(block, index) for index in range(3, 6))
        self.tables, self.lengths, self.out = (code.argument(block, index) for index in range(6, 9))
        self.num_seqs, self.num_kv_heads, self.group = (code.argument(block, index) for index in range(9, 12))
        self.width, self.value_width, self.block_size = (code.argument(block, index) for index in range(12, 15))
        self.table_stride, self.window = code.argument(block, 15), code.argument(block, 16)
        self.scaling, self.softcap = code.float_argument(block, 17), code.float_argument(block, 18)
        self.sinks = code.argument(block, 19)  # 0 if there are none


class _Scratch:
    """Addresses of a thread's own memory."""

    def __init__(self, code: Code, given: _Arguments) -> None:
        self.packed = code.stack(given.width * (4 * keys_at_once(code)))  # (width / lanes, keys, lanes) float32
        self.queries = code.stack(given.group * given.width * 4)  # (group, width) float32, multiplied by `scaling`
        self.outputs = code.stack(given.group * given.value_width * 4)  # (group, value width) float32
        self.scores = code.stack(given.group * (4 * KEYS_PER_UPDATE))  # (group, KEYS_PER_UPDATE) float32
        self.state = code.stack(given.group * 8)  # for each head the largest score and the sum of weights, float32
        self.key_rows = code.stack(8 * KEYS_PER_UPDATE)  # addresses of keys
        self.value_rows = code.stack(8 * KEYS_PER_UPDATE)  # addresses of values


@dataclass(frozen=True, slots=True)
class _Item:
    """Addresses of a sequence's block table and of a KV head's first cached key and value, with strides in bytes."""

    table: Int
    keys: Int
    values: Int
    key_stride: Int
    value_stride: Int


class _DecodeAttention:
    """Emits the kernel `decode_attention`: the loop over work items, and the steps of one item."""

    def __init__(self, code: Code, block: Int, is_bf16: bool, cache_is_bf16: bool) -> None:
        self._code, self._block = code, block
        self._is_bf16, self._cache_is_bf16 = is_bf16, cache_is_bf16
        self._size, self._cache_size = element_bytes(is_bf16), element_bytes(cache_is_bf16)
        self._lanes = code.isa.lanes
        self._given = _Arguments(code, block)
        self._scratch = _Scratch(code, self._given)

    def emit(self) -> None:
        """Emit the loop over work items."""
        code, given = self._code, self._given
        with code.work_items(self._block, given.num_seqs * given.num_kv_heads) as number:
            seq, kv_head = number // given.num_kv_heads, number % given.num_kv_heads
            length = code.load_int32(given.lengths + seq * 4)
            target = given.out + number * given.group * given.value_width * self._size
            with code.either(length <= 0) as (empty, attends):
                with empty:
                    self._clear(target, given.group * given.value_width, self._is_bf16)
                with attends:
                    item = _Item(
                        given.tables + seq * given.table_stride * 4,
                        given.keys + kv_head * given.width * self._cache_size,
                        given.values + kv_head * given.value_width * self._cache_size,
                        given.num_kv_heads * given.width * self._cache_size,
                        given.num_kv_heads * given.value_width * self._cache_size,
                    )
                    self._start(given.query + number * given.group * given.width * self._size, kv_head)
                    self._attend(item, (length - given.window).maximum(0), length)
                    self._finish(target)

    def _clear(self, outputs: Int, total: Int, is_bf16: bool) -> None:
        """Write `total` zeros to the address `outputs`, in bfloat16 or float32."""
        with self._code.loop(0, total, self._lanes) as index:
            store(self._code, self._code.floats(0.0, self._lanes), outputs + index * element_bytes(is_bf16), is_bf16)

    def _start(self, source: Int, kv_head: Int) -> None:
        """Write the queries of one item as scaled float32, and initialise outputs and state.

        A sink counts as a key that has already been processed, with a score but without a value.
        """
        code, given, scratch = self._code, self._given, self._scratch
        with code.loop(0, given.group * given.width, self._lanes) as index:
            value = load(code, source + index * self._size, self._is_bf16, self._lanes) * given.scaling
            code.store(value, scratch.queries + index * 4, 4)
        self._clear(scratch.outputs, given.group * given.value_width, is_bf16=False)
        with code.loop(0, given.group) as head:
            largest, total = code.variable(code.number(_LOWEST)), code.variable(code.number(0.0))
            with code.when(given.sinks > 0):
                largest.set(code.load_float(given.sinks + (kv_head * given.group + head) * 4))
                total.set(code.number(1.0))
            code.store(largest.get(), scratch.state + head * 8, 4)
            code.store(total.get(), scratch.state + head * 8 + 4, 4)

    def _attend(self, item: _Item, first: Int, length: Int) -> None:
        """Attend over the keys at the positions first, …, length - 1."""
        code, given, scratch = self._code, self._given, self._scratch
        with code.loop(first, length, KEYS_PER_UPDATE) as start:
            count = (length - start).minimum(KEYS_PER_UPDATE)
            self._locate(item, start, count)
            self._score(count)
            with code.loop(0, given.group) as head:
                scores = scratch.scores + head * (4 * KEYS_PER_UPDATE)
                self._update_softmax(
                    scores, count, scratch.state + head * 8, scratch.outputs + head * given.value_width * 4
                )
            with code.loop(0, given.group, MAX_QUERIES) as head:
                outputs = scratch.outputs + head * given.value_width * 4
                weights = scratch.scores + head * (4 * KEYS_PER_UPDATE)
                some = (given.group - head).minimum(MAX_QUERIES)
                rows, width = scratch.value_rows, given.value_width
                accumulate(code, outputs, weights, rows, count, width, some, self._cache_is_bf16)

    def _locate(self, item: _Item, start: Int, count: Int) -> None:
        """Store the addresses of the keys and values at the positions start, …, start + count - 1 in the scratch."""
        code, size = self._code, self._given.block_size
        done = code.variable(code.integer(0))
        with code.repeat_while(lambda: done.get() < count):
            before = done.get()
            block = (start + before) // size
            offset = (start + before) - block * size
            run = (size - offset).minimum(count - before)
            row = code.load_int32(item.table + block * 4) * size + offset
            with code.loop(0, run) as index:
                place = (before + index) * 8
                code.store(item.keys + (row + index) * item.key_stride, self._scratch.key_rows + place, 8)
                code.store(item.values + (row + index) * item.value_stride, self._scratch.value_rows + place, 8)
            done.set(before + run)

    def _score(self, count: Int) -> None:
        """Write the scores of the keys of one update. Scores beyond `count` in the last vector are set to _LOWEST."""
        code, given, scratch, lanes = self._code, self._given, self._scratch, self._lanes
        with code.loop(0, count, keys_at_once(code)) as first:
            self._pack_keys(first, count)
            left = (count - first).splat(INT32, lanes)
            with code.loop(0, given.group) as head:
                target = scratch.scores + (head * KEYS_PER_UPDATE + first) * 4
                vectors = dots(code, scratch.queries + head * given.width * 4, scratch.packed, given.width // lanes)
                for index, products in enumerate(vectors):
                    scores = code.variable(products)
                    with code.when(given.softcap.differs(0.0)):
                        scores.set(self._softcapped(products, given.softcap))
                    exists = left > code.ints(list(range(index * lanes, (index + 1) * lanes)), lanes)
                    chosen = exists.select(scores.get(), code.floats(_LOWEST, lanes))
                    code.store(chosen, target + 4 * lanes * index, 4)

    def _pack_keys(self, first: Int, count: Int) -> None:
        """Write the keys of one call of `dots` as float32. Keys beyond `count` repeat the last one.

        Prefetches their values and the next keys, because the hardware prefetcher does not follow accesses across rows
        and blocks.
        """
        code, given, scratch, lanes = self._code, self._given, self._scratch, self._lanes
        num_keys = keys_at_once(code)
        with code.loop(0, num_keys) as key:
            index = (first + key).minimum(count - 1)
            row = code.load_int64(scratch.key_rows + index * 8)
            self._prefetch_row(scratch.key_rows, (index + num_keys).minimum(count - 1), given.width)
            self._prefetch_row(scratch.value_rows, index, given.value_width)
            with code.loop(0, given.width // lanes) as chunk:
                value = load(code, row + chunk * (lanes * self._cache_size), self._cache_is_bf16, lanes)
                code.store(value, scratch.packed + (chunk * num_keys + key) * (4 * lanes), 4)

    def _prefetch_row(self, rows: Int, index: Int, width: Int) -> None:
        """Start loading the row of the cache at the address rows[index]."""
        row = self._code.load_int64(rows + index * 8)
        with self._code.loop(0, width * self._cache_size, 64) as line:
            self._code.prefetch(row + line)

    def _softcapped(self, scores: Vector, softcap: Float) -> Vector:
        """Return softcap * tanh(scores / softcap), with tanh(x) = 1 - 2 / (e**(2x) + 1)."""
        raised = exp(self._code, scores * (2.0 / softcap))
        return (1.0 - 2.0 / (raised + 1.0)) * softcap

    def _update_softmax(self, scores: Int, count: Int, state: Int, outputs: Int) -> None:
        """Replace one head's scores of one update with softmax weights, and update its state and outputs.

        If the largest score rises, the sum and `outputs` (value_width,) are multiplied by e**(before - largest), which
        makes them relative to the new largest score.
        """
        code, lanes = self._code, self._lanes
        highest = code.variable(code.floats(_LOWEST, lanes))
        with code.loop(0, count, lanes) as index:
            highest.set(code.load_floats(scores + index * 4, lanes).maximum(highest.get()))
        before, total = code.load_float(state), code.variable(code.load_float(state + 4))
        found = highest.get().largest()
        largest = found.maximum(before)
        with code.when(largest > before):
            factor = exp(code, (before - largest).splat(lanes))
            total.set(total.get() * factor.lane(0))
            with code.loop(0, self._given.value_width, lanes) as index:
                code.store(code.load_floats(outputs + index * 4, lanes) * factor, outputs + index * 4, 4)
        weights = code.variable(code.floats(0.0, lanes))
        with code.loop(0, count, lanes) as index:
            weight = exp(code, code.load_floats(scores + index * 4, lanes) - largest)
            code.store(weight, scores + index * 4, 4)
            weights.set(weights.get() + weight)
        code.store(largest, state, 4)
        code.store(total.get() + weights.get().sum(), state + 4, 4)

    def _finish(self, target: Int) -> None:
        """Divide the weighted values by the sums of weights, and write the result."""
        code, width = self._code, self._given.value_width
        with code.loop(0, self._given.group) as head:
            factor = 1.0 / code.load_float(self._scratch.state + head * 8 + 4)
            with code.loop(head * width, (head + 1) * width, self._lanes) as index:
                value = code.load_floats(self._scratch.outputs + index * 4, self._lanes) * factor
                store(code, value, target + index * self._size, self._is_bf16)


def make_decode_attention(is_bf16: bool, cache_is_bf16: bool) -> Emit:
    """Return the function that emits the kernel `decode_attention`.

    Args:
        is_bf16: True if queries and result are bfloat16, False for float32.
        cache_is_bf16: True if keys and values are bfloat16, False for float32.
    """

    def decode_attention(code: Code, block: Int) -> None:
        _DecodeAttention(code, block, is_bf16, cache_is_bf16).emit()

    return decode_attention
