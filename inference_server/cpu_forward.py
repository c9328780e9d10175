"""Forward passes on a CPU as one call: every kernel of the model listed once, then run as it stands.

Called one by one from Python, the kernels of a small model cost more in calls than in work. What cannot be listed (another
architecture, layers without a kernel) is run by the model's own modules.
"""

from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from inference_server import kernels
from inference_server.attention import Segment, decode_inputs, prefill_inputs
from inference_server.compiled_linear import CompiledLinear
from inference_server.fused import FusedAttention, FusedMLP, FusedRMSNorm
from inference_server.kernels import arguments, tiles
from inference_server.kernels.arguments import (
    ADD_RMS_NORM_ROWS,
    ATTENTION_ROWS,
    LINEAR_ROWS,
    RMS_NORM_ROWS,
    ROPE_ROWS,
    SILU_MUL_ROWS,
)
from inference_server.kernels.compiled import Kernel, kernel
from inference_server.kernels.program import Program, Step
from inference_server.kv_cache import KVCache

# Their decoder layers add the attention of the normed input, then the MLP of the normed sum, and do nothing else.
_MODELS = {"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM"}
_LAYERS = {"LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer"}


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
    gate_up: Tensor
    product: Tensor
    rows: Tensor  # int64: where keys and values go
    table: Tensor  # (decoded sequences, blocks of the longest) int32
    lengths: Tensor  # (decoded sequences,) int32
    logits: Tensor  # (decoded sequences, vocabulary) float32
    segments: Tensor  # int64, of prompts: at most one for each row
    memory: Tensor  # int8, for the linears


class CpuForward:
    """Decode passes, and prompts' where `has_prompts`. Results live until the next call."""

    def __init__(self, model: Any, cache: KVCache) -> None:
        """Raises ValueError, which tells why, if `model` is not one that can be listed."""
        _check(model)
        self._model, self._cache = model, cache
        self._layers: list[Any] = list(model.model.layers)
        self._dtype: torch.dtype = model.model.embed_tokens.weight.dtype
        attention = self._layers[0].self_attn
        self._num_heads, self._num_kv_heads = attention.num_heads, attention.num_kv_heads
        self._head_dim = attention.qkv_proj.out_features // (self._num_heads + 2 * self._num_kv_heads)
        has_windows = any(layer.self_attn.form.sliding_window is not None for layer in self._layers)
        keys, _ = self._keys_and_values(attention)
        prefill = kernels.prefill_attention_kernel(self._dtype, keys)
        self._prefill_kernel = None if has_windows else prefill
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
        return buffers.logits[:count, : self._model.lm_head.out_features]

    def prefill(self, token_ids: Items[int], positions: Items[int], parts: list[Segment]) -> Tensor:
        """Prompts' tokens, one part after the other. Returns the last layer's output, normed, (num_tokens, hidden_size)."""
        count = len(token_ids)
        buffers = self._room_for(count, 0, 0)
        tables, rows = prefill_inputs(self._cache, parts)
        self._write_inputs(buffers, token_ids, positions, rows)
        segments = kernels.PrefillSegments([part.start for part in parts], [part.length for part in parts], tables)
        segments.place(self._num_kv_heads, self._head_dim)
        self._segments = segments  # its memory is told by address
        buffers.segments[: len(segments.table)] = segments.table
        if self._prefill_program is None:
            self._prefill_program = Program(self._listed(buffers, is_prefill=True), keep=buffers)
        self._prefill_program.run(count)
        return buffers.normed[:count]

    def _write_inputs(self, buffers: _Buffers, token_ids: Items[int], positions: Items[int], rows: Tensor) -> None:
        count, inner = len(token_ids), self._model.model
        torch.index_select(inner.embed_tokens.weight, 0, torch.tensor(token_ids), out=buffers.hidden[:count])
        cos, sin = inner.rotary_emb(buffers.hidden, torch.tensor([positions]))
        buffers.cos[:count], buffers.sin[:count] = cos[0], sin[0]
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
        attention, mlp = self._layers[0].self_attn, self._layers[0].mlp
        hidden_size = self._model.model.embed_tokens.embedding_dim
        cos, _ = self._model.model.rotary_emb(torch.zeros(1, dtype=self._dtype), torch.zeros(1, 1, dtype=torch.int64))
        linears = [module for module in self._model.modules() if isinstance(module, CompiledLinear)]

        def of(*shape: int, dtype: torch.dtype = self._dtype) -> Tensor:
            return torch.zeros(num_rows, *shape, dtype=dtype)

        return _Buffers(
            hidden=of(hidden_size),
            normed=of(hidden_size),
            delta=of(hidden_size),
            cos=of(self._head_dim, dtype=cos.dtype),
            sin=of(self._head_dim, dtype=cos.dtype),
            qkv=of(attention.qkv_proj.out_features),
            query=of(self._num_heads, self._head_dim),
            attended=of(self._num_heads, self._head_dim),
            gate_up=of(mlp.gate_up_proj.out_features),
            product=of(mlp.down_proj.in_features),
            rows=of(dtype=torch.int64),
            table=torch.zeros(num_seqs, num_blocks, dtype=torch.int32),
            lengths=torch.zeros(num_seqs, dtype=torch.int32),
            logits=torch.zeros(num_seqs, self._model.lm_head.padded_features),
            segments=torch.zeros(arguments.segment_words(num_rows), dtype=torch.int64),
            memory=torch.zeros(max(linear.memory_bytes(num_rows) for linear in linears) + 64, dtype=torch.int8),
        )

    def _listed(self, buffers: _Buffers, *, is_prefill: bool) -> list[Step]:
        steps: list[Step] = []
        for layer in self._layers:
            steps.append(self._norm(layer.input_layernorm, buffers, is_first=not steps))
            steps += self._attention(layer.self_attn, buffers, is_prefill)
            steps.append(self._norm(layer.post_attention_layernorm, buffers))
            steps += self._mlp(layer.mlp, buffers)
        steps.append(self._norm(self._model.model.norm, buffers))
        if not is_prefill:
            steps.append(_linear(self._model.lm_head, buffers.normed, buffers.logits, buffers))
        return steps

    def _kernel(self, name: str, *others: torch.dtype) -> Kernel:
        found = kernel(name, *(dtype is torch.bfloat16 for dtype in (self._dtype, *others)))
        assert found is not None
        return found

    def _norm(self, norm: Any, buffers: _Buffers, *, is_first: bool = False) -> Step:
        hidden, delta, normed = buffers.hidden, buffers.delta, buffers.normed
        if is_first:
            words = arguments.rms_norm(hidden, norm.weight, normed, norm.eps)
            return Step(self._kernel("rows.rms_norm"), words, RMS_NORM_ROWS)
        words = arguments.add_rms_norm(hidden, delta, norm.weight, normed, norm.eps)
        return Step(self._kernel("rows.add_rms_norm"), words, ADD_RMS_NORM_ROWS)

    def _attention(self, attention: Any, buffers: _Buffers, is_prefill: bool) -> list[Step]:
        b = buffers
        keys, values = self._keys_and_values(attention)
        rotate = arguments.rope_and_write(b.qkv, b.cos, b.sin, keys, values, b.rows, b.query)
        rotate_kernel = self._kernel("rows.rope_and_write", b.cos.dtype, keys.dtype)
        attend = self._prefill_attention if is_prefill else self._decode_attention
        return [
            _linear(attention.qkv_proj, b.normed, b.qkv, b),
            Step(rotate_kernel, rotate, ROPE_ROWS),
            attend(attention, keys, values, b),
            _linear(attention.o_proj, b.attended.flatten(1), b.delta, b),
        ]

    def _decode_attention(self, attention: Any, keys: Tensor, values: Tensor, b: _Buffers) -> Step:
        form = attention.form
        words = arguments.attention(
            b.query, keys, values, b.table, b.lengths, b.attended, form.scaling, form.sliding_window, form.softcap
        )
        return Step(self._kernel("decode.attention", keys.dtype), words, ATTENTION_ROWS)

    def _prefill_attention(self, attention: Any, keys: Tensor, values: Tensor, b: _Buffers) -> Step:
        assert self._prefill_kernel is not None
        shapes, scaling = tiles.full_shapes(), attention.form.scaling
        words = arguments.prefill_attention(b.query, keys, values, b.segments, b.attended, shapes, scaling)
        return Step(self._prefill_kernel, words)  # the number of rows is in the segments

    def _keys_and_values(self, attention: Any) -> tuple[Tensor, Tensor]:
        like = torch.empty(0, self._num_kv_heads, self._head_dim, dtype=self._dtype)
        return self._cache.layer(attention.layer_idx, like, like)

    def _mlp(self, mlp: Any, b: _Buffers) -> list[Step]:
        gate = arguments.silu_mul(b.gate_up, b.product)
        return [
            _linear(mlp.gate_up_proj, b.normed, b.gate_up, b),
            Step(self._kernel("rows.silu_mul"), gate, SILU_MUL_ROWS),
            _linear(mlp.down_proj, b.product, b.delta, b),
        ]


def _linear(linear: CompiledLinear, x: Tensor, out: Tensor, buffers: _Buffers) -> Step:
    return Step(*linear.step(x, out, buffers.memory), LINEAR_ROWS, linear.plan)


def _rounded_up(number: int) -> int:
    """The next power of two, so that buffers seldom grow."""
    return max(8, 1 << (number - 1).bit_length()) if number else 0


def _check(model: Any) -> None:
    """Raises ValueError for what differs from what _listed lists."""
    if type(model).__name__ not in _MODELS or not kernels.available():
        raise ValueError("its architecture is not known")
    inner = model.model
    embedding, dtype = inner.embed_tokens, inner.embed_tokens.weight.dtype
    if type(embedding) is not nn.Embedding or dtype not in (torch.float32, torch.bfloat16):
        raise ValueError("its embedding is not plain")
    norms, linears = [inner.norm], []
    for layer in inner.layers:
        attention, mlp = layer.self_attn, layer.mlp
        if type(layer).__name__ not in _LAYERS:
            raise ValueError("its layers are not known")
        if type(attention) is not FusedAttention or type(mlp) is not FusedMLP:
            raise ValueError("its layers are not fused")
        norms += [layer.input_layernorm, layer.post_attention_layernorm]
        linears += [attention.qkv_proj, attention.o_proj, mlp.gate_up_proj, mlp.down_proj]
    if not all(type(norm) is FusedRMSNorm and norm.weight.dtype is dtype for norm in norms):
        raise ValueError("its norms are not fused")
    if not all(isinstance(linear, CompiledLinear) for linear in [*linears, model.lm_head]):
        raise ValueError("its linears have no kernel")
    if any(linear.padded_features != linear.out_features for linear in linears):
        raise ValueError("its linears are of an odd width")
    if any(not (linear.dtype is linear.out_dtype is dtype) for linear in linears):
        raise ValueError("its linears are of another dtype")
    if model.lm_head.dtype is not dtype or model.lm_head.out_dtype is not torch.float32:
        raise ValueError("its head is of another dtype")
