"""Forward passes on a CPU as one call: every kernel of the model listed once, then run as it stands.

Called one by one from Python, the kernels of a small model cost more in calls than in work.
"""

from collections.abc import Sequence as Items
from dataclasses import dataclass

import torch
from torch import Tensor

from inference_server.attention.kv_cache import KVCache
from inference_server.attention.paged import Segment, decode_inputs, prefill_inputs
from inference_server.attention.torch_attention import Form
from inference_server.cpu.decoder_weights import Decoder, Layer
from inference_server.cpu.linear.amx.layers import CompiledLinear
from inference_server.kernels import ops as kernels
from inference_server.kernels.amx import tile_config as tiles
from inference_server.kernels.jit import arguments
from inference_server.kernels.jit.arguments import (
    ADD_RMS_NORM_ROWS,
    ATTENTION_ROWS,
    LINEAR_ROWS,
    RMS_NORM_ROWS,
    ROPE_ROWS,
)
from inference_server.kernels.jit.kernel import Kernel, kernel
from inference_server.kernels.jit.program import Program, Step


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


@dataclass(frozen=True, slots=True)
class DecodeTokens:
    """The newest token of each of several sequences."""

    token_ids: list[int]
    positions: list[int]
    block_ids: Items[Items[int]]


@dataclass(frozen=True, slots=True)
class PromptTokens:
    """Of prompts' segments, one after the other."""

    token_ids: list[int]
    positions: list[int]
    segments: list[Segment]


# Block table, lengths and rows.
_NOTHING = (torch.zeros(0, 0, dtype=torch.int32), torch.zeros(0, dtype=torch.int32), torch.zeros(0, dtype=torch.int64))


class CpuForward:
    """Passes of tokens that are decoded, and where `has_prompts`, of prompts, and of both at once.

    Results live until the next call.
    """

    def __init__(self, decoder: Decoder, cache: KVCache) -> None:
        self._decoder, self._cache = decoder, cache
        keys, _ = self._keys_and_values(0)
        prefill = kernels.prefill_attention_kernel(decoder.dtype, keys)
        self._prefill_kernel = None if decoder.has_windows else prefill
        self._buffers: _Buffers | None = None
        self._segments: kernels.PrefillSegments | None = None
        self._programs: dict[tuple[bool, bool], Program] = {}

    @property
    def has_prompts(self) -> bool:
        return self._prefill_kernel is not None

    def decode(self, tokens: DecodeTokens) -> Tensor:
        """One token for each sequence. Returns logits (num_seqs, vocab_size) float32."""
        return self._run(tokens, None).logits[: len(tokens.token_ids), : self._decoder.head.out_features]

    def prefill(self, prompts: PromptTokens) -> Tensor:
        """Returns the last layer's output, normed, (num_tokens, hidden_size)."""
        return self._run(None, prompts).normed[: len(prompts.token_ids)]

    def both(self, tokens: DecodeTokens, prompts: PromptTokens) -> Tensor:
        """The same of both, first of those that are decoded: the weights are read once."""
        return self._run(tokens, prompts).normed[: len(tokens.token_ids) + len(prompts.token_ids)]

    def _run(self, tokens: DecodeTokens | None, prompts: PromptTokens | None) -> _Buffers:
        num_decoded = len(tokens.token_ids) if tokens else 0
        table, lengths, rows = _NOTHING
        if tokens:
            table, lengths, rows = decode_inputs(
                self._cache.block_size, tokens.block_ids, tokens.positions, num_decoded
            )
        tables: list[Tensor] = []
        if prompts:
            tables, prompt_rows = prefill_inputs(self._cache, prompts.segments)
            rows = torch.cat([rows, prompt_rows])
        count = len(rows)
        buffers = self._room_for(count, num_decoded, table.shape[1])
        buffers.table[:num_decoded, : table.shape[1]] = table
        buffers.lengths[:num_decoded] = lengths
        buffers.rows[:count] = rows
        if prompts:
            self._place(prompts.segments, tables, num_decoded, buffers)
        self._begin([each for each in (tokens, prompts) if each], buffers)
        kind = (tokens is not None, prompts is not None)
        if kind not in self._programs:
            self._programs[kind] = Program(self._listed(buffers, *kind), keep=buffers)
        self._programs[kind].run(count, num_decoded)
        return buffers

    def _place(self, parts: list[Segment], tables: list[Tensor], first_row: int, buffers: _Buffers) -> None:
        starts, lengths = [part.start for part in parts], [part.length for part in parts]
        segments = kernels.PrefillSegments(starts, lengths, tables, first_row)
        segments.place(self._decoder.num_kv_heads, self._decoder.head_dim)
        self._segments = segments  # its memory is told by address
        buffers.segments[: len(segments.table)] = segments.table

    def _begin(self, parts: "list[DecodeTokens | PromptTokens]", buffers: _Buffers) -> None:
        """Embeddings and angles of all tokens."""
        token_ids = [token_id for part in parts for token_id in part.token_ids]
        positions = [position for part in parts for position in part.positions]
        count = len(token_ids)
        torch.index_select(self._decoder.embedding, 0, torch.tensor(token_ids), out=buffers.hidden[:count])
        self._decoder.rotary.angles(torch.tensor(positions), buffers.cos[:count], buffers.sin[:count])

    def _room_for(self, num_rows: int, num_seqs: int, num_blocks: int) -> _Buffers:
        wanted = (num_rows, num_seqs, num_blocks)
        there = (len(self._buffers.hidden), *self._buffers.table.shape) if self._buffers else (0, 0, 0)
        if self._buffers is None or any(want > has for want, has in zip(wanted, there, strict=True)):
            sizes = (max(has, _rounded_up(want)) for want, has in zip(wanted, there, strict=True))
            self._buffers = self._allocate(*sizes)
            self._programs = {}
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

    def _listed(self, buffers: _Buffers, has_decode: bool, has_prompts: bool) -> list[Step]:
        steps: list[Step] = []
        for index, layer in enumerate(self._decoder.layers):
            steps.append(self._norm(layer.input_norm, buffers, is_first=not steps))
            steps += self._attention(index, layer, buffers, has_decode, has_prompts)
            steps.append(self._norm(layer.post_norm, buffers))
            steps += self._mlp(layer, buffers)
        steps.append(self._norm(self._decoder.norm, buffers))
        if not has_prompts:
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

    def _attention(self, index: int, layer: Layer, b: _Buffers, has_decode: bool, has_prompts: bool) -> list[Step]:
        keys, values = self._keys_and_values(index)
        rotate = arguments.rope_and_write(b.qkv, b.cos, b.sin, keys, values, b.rows, b.query)
        steps = [
            _linear(layer.qkv, b.normed, b.qkv, b),
            Step(self._kernel("rows.rope_and_write", b.cos.dtype, keys.dtype), rotate, ROPE_ROWS),
        ]
        if has_prompts:  # first: it is the longer one, and its end is more even
            steps.append(self._prefill_attention(layer.form, keys, values, b))
        if has_decode:
            steps.append(self._decode_attention(layer.form, keys, values, b))
        return [*steps, _linear(layer.output, b.attended.flatten(1), b.delta, b)]

    def _decode_attention(self, form: Form, keys: Tensor, values: Tensor, b: _Buffers) -> Step:
        words = arguments.attention(
            b.query, keys, values, b.table, b.lengths, b.attended, form.scaling, form.sliding_window, form.softcap
        )
        return Step(self._kernel("decode.attention", keys.dtype), words, ATTENTION_ROWS, is_decode=True)

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
