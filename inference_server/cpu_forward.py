"""Forward passes on a CPU as one call: every kernel of the model listed once, then run as it stands.

Called one by one from Python, the kernels of a small model cost more in calls than in work.
"""

from collections.abc import Sequence as Items
from dataclasses import dataclass

import torch
from torch import Tensor

from inference_server import kernels
from inference_server.attention import Segment, decode_inputs, prefill_inputs
from inference_server.compiled_linear import CompiledLinear
from inference_server.decoder import Decoder, Layer
from inference_server.kernels import arguments, tiles
from inference_server.kernels.arguments import (
    ADD_RMS_NORM_ROWS,
    ATTENTION_ROWS,
    LINEAR_ROWS,
    RMS_NORM_ROWS,
    ROPE_ROWS,
)
from inference_server.kernels.compiled import Kernel, kernel
from inference_server.kernels.program import Program, Step
from inference_server.kv_cache import KVCache
from inference_server.scores import Form


@dataclass(frozen=True, slots=True)
class _Buffers:
    """What the kernels of a pass read and write, for at most so many rows. All of them (rows, …) but the last three."""

    hidden: Tensor  # the sum that layers add to
    normed: Tensor
    delta: Tensor  # what a layer adds
    cos: Tensor
    sin: Tensor
    qkv: Tensor
    query: Tensor
    attended: Tensor
    product: Tensor
    rows: Tensor  # int64: where keys and values go
    table: Tensor  # (decoded sequences, blocks of the longest) int32
    lengths: Tensor  # (decoded sequences,) int32
    logits: Tensor  # (decoded sequences, vocabulary) float32
    segments: Tensor  # int64, of prompts: at most one for each row
    memory: Tensor  # int8, for the linears


class CpuForward:
    """Decode passes, and prompts' where `has_prompts`. Results live until the next call."""

    def __init__(self, decoder: Decoder, cache: KVCache) -> None:
        self._decoder, self._cache = decoder, cache
        keys, _ = self._keys_and_values(0)
        prefill = kernels.prefill_attention_kernel(decoder.dtype, keys)
        self._prefill_kernel = None if decoder.has_windows else prefill
        self._buffers: _Buffers | None = None
        self._segments: kernels.PrefillSegments | None = None
        self._decode_program: Program | None = None
        self._prefill_program: Program | None = None

    @property
    def has_prompts(self) -> bool:
        return self._prefill_kernel is not None

    def decode(self, token_ids: Items[int], positions: Items[int], block_ids: Items[Items[int]]) -> Tensor:
        """One token for each sequence. Returns logits (num_seqs, vocab_size) float32."""
        count = len(token_ids)
        table, lengths, rows = decode_inputs(self._cache.block_size, block_ids, positions, count)
        buffers = self._room_for(count, count, table.shape[1])
        self._write_inputs(buffers, token_ids, positions, rows)
        buffers.table[:count, : table.shape[1]] = table
        buffers.lengths[:count] = lengths
        if self._decode_program is None:
            self._decode_program = Program(self._listed(buffers, is_prefill=False), keep=buffers)
        self._decode_program.run(count)
        return buffers.logits[:count, : self._decoder.head.out_features]

    def prefill(self, token_ids: Items[int], positions: Items[int], parts: list[Segment]) -> Tensor:
        """Prompts' tokens, one part after the other. Returns the last layer's output, normed, (num_tokens, hidden_size)."""
        count = len(token_ids)
        buffers = self._room_for(count, 0, 0)
        tables, rows = prefill_inputs(self._cache, parts)
        self._write_inputs(buffers, token_ids, positions, rows)
        segments = kernels.PrefillSegments([part.start for part in parts], [part.length for part in parts], tables)
        segments.place(self._decoder.num_kv_heads, self._decoder.head_dim)
        self._segments = segments  # its memory is told by address
        buffers.segments[: len(segments.table)] = segments.table
        if self._prefill_program is None:
            self._prefill_program = Program(self._listed(buffers, is_prefill=True), keep=buffers)
        self._prefill_program.run(count)
        return buffers.normed[:count]

    def _write_inputs(self, buffers: _Buffers, token_ids: Items[int], positions: Items[int], rows: Tensor) -> None:
        count, decoder = len(token_ids), self._decoder
        torch.index_select(decoder.embedding, 0, torch.tensor(token_ids), out=buffers.hidden[:count])
        decoder.rotary.angles(torch.tensor(positions), buffers.cos[:count], buffers.sin[:count])
        buffers.rows[:count] = rows

    def _room_for(self, num_rows: int, num_seqs: int, num_blocks: int) -> _Buffers:
        wanted = (num_rows, num_seqs, num_blocks)
        there = (len(self._buffers.hidden), *self._buffers.table.shape) if self._buffers else (0, 0, 0)
        if self._buffers is None or any(want > has for want, has in zip(wanted, there, strict=True)):
            sizes = (max(has, _rounded_up(want)) for want, has in zip(wanted, there, strict=True))
            self._buffers = self._allocate(*sizes)
            self._decode_program = self._prefill_program = None
        return self._buffers

    def _allocate(self, num_rows: int, num_seqs: int, num_blocks: int) -> _Buffers:
        decoder = self._decoder
        layer, hidden_size = decoder.layers[0], decoder.embedding.shape[1]

        def of(*shape: int, dtype: torch.dtype = decoder.dtype) -> Tensor:
            return torch.zeros(num_rows, *shape, dtype=dtype)

        return _Buffers(
            hidden=of(hidden_size),
            normed=of(hidden_size),
            delta=of(hidden_size),
            cos=of(decoder.head_dim),
            sin=of(decoder.head_dim),
            qkv=of(layer.qkv.out_features),
            query=of(decoder.num_heads, decoder.head_dim),
            attended=of(decoder.num_heads, decoder.head_dim),
            product=of(layer.down.in_features),
            rows=of(dtype=torch.int64),
            table=torch.zeros(num_seqs, num_blocks, dtype=torch.int32),
            lengths=torch.zeros(num_seqs, dtype=torch.int32),
            logits=torch.zeros(num_seqs, decoder.head.padded_features),
            segments=torch.zeros(arguments.segment_words(num_rows), dtype=torch.int64),
            memory=torch.zeros(max(linear.memory_bytes(num_rows) for linear in decoder.linears) + 64, dtype=torch.int8),
        )

    def _listed(self, buffers: _Buffers, *, is_prefill: bool) -> list[Step]:
        steps: list[Step] = []
        for index, layer in enumerate(self._decoder.layers):
            steps.append(self._norm(layer.input_norm, buffers, is_first=not steps))
            steps += self._attention(index, layer, buffers, is_prefill)
            steps.append(self._norm(layer.post_norm, buffers))
            steps += self._mlp(layer, buffers)
        steps.append(self._norm(self._decoder.norm, buffers))
        if not is_prefill:
            steps.append(_linear(self._decoder.head, buffers.normed, buffers.logits, buffers))
        return steps

    def _kernel(self, name: str, *others: torch.dtype) -> Kernel:
        found = kernel(name, *(dtype is torch.bfloat16 for dtype in (self._decoder.dtype, *others)))
        assert found is not None
        return found

    def _norm(self, weight: Tensor, buffers: _Buffers, *, is_first: bool = False) -> Step:
        hidden, delta, normed, eps = buffers.hidden, buffers.delta, buffers.normed, self._decoder.eps
        if is_first:
            return Step(self._kernel("rows.rms_norm"), arguments.rms_norm(hidden, weight, normed, eps), RMS_NORM_ROWS)
        words = arguments.add_rms_norm(hidden, delta, weight, normed, eps)
        return Step(self._kernel("rows.add_rms_norm"), words, ADD_RMS_NORM_ROWS)

    def _attention(self, index: int, layer: Layer, b: _Buffers, is_prefill: bool) -> list[Step]:
        keys, values = self._keys_and_values(index)
        rotate = arguments.rope_and_write(b.qkv, b.cos, b.sin, keys, values, b.rows, b.query)
        rotate_kernel = self._kernel("rows.rope_and_write", b.cos.dtype, keys.dtype)
        attend = self._prefill_attention if is_prefill else self._decode_attention
        return [
            _linear(layer.qkv, b.normed, b.qkv, b),
            Step(rotate_kernel, rotate, ROPE_ROWS),
            attend(layer.form, keys, values, b),
            _linear(layer.output, b.attended.flatten(1), b.delta, b),
        ]

    def _decode_attention(self, form: Form, keys: Tensor, values: Tensor, b: _Buffers) -> Step:
        words = arguments.attention(
            b.query, keys, values, b.table, b.lengths, b.attended, form.scaling, form.sliding_window, form.softcap
        )
        return Step(self._kernel("decode.attention", keys.dtype), words, ATTENTION_ROWS)

    def _prefill_attention(self, form: Form, keys: Tensor, values: Tensor, b: _Buffers) -> Step:
        assert self._prefill_kernel is not None
        words = arguments.prefill_attention(
            b.query, keys, values, b.segments, b.attended, tiles.full_shapes(), form.scaling
        )
        return Step(self._prefill_kernel, words)  # the number of rows is in the segments

    def _keys_and_values(self, layer: int) -> tuple[Tensor, Tensor]:
        decoder = self._decoder
        like = torch.empty(0, decoder.num_kv_heads, decoder.head_dim, dtype=decoder.dtype)
        return self._cache.layer(layer, like, like)

    def _mlp(self, layer: Layer, b: _Buffers) -> list[Step]:
        return [
            _linear(layer.gate_up, b.normed, b.product, b),
            _linear(layer.down, b.product, b.delta, b),
        ]


def _linear(linear: CompiledLinear, x: Tensor, out: Tensor, buffers: _Buffers) -> Step:
    return Step(*linear.step(x, out, buffers.memory), LINEAR_ROWS, linear.plan)


def _rounded_up(number: int) -> int:
    """The next power of two, so that buffers seldom grow."""
    return max(8, 1 << (number - 1).bit_length()) if number else 0
