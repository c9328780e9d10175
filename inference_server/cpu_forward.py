"""Decode passes on a CPU as one call: every kernel of the model listed once for each number of rows, then run as it stands.

Called one by one from Python, the kernels of a small model cost more in calls than in work. What cannot be listed (another
architecture, layers without a kernel) is run by the model's own modules.
"""

import logging
from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from inference_server import kernels
from inference_server.attention import decode_inputs
from inference_server.compiled_linear import CompiledLinear
from inference_server.fused import FusedAttention, FusedMLP, FusedRMSNorm
from inference_server.kernels import arguments
from inference_server.kernels.compiled import Kernel
from inference_server.kernels.program import Program
from inference_server.kv_cache import KVCache

logger = logging.getLogger(__name__)

# Their decoder layers add the attention of the normed input, then the MLP of the normed sum, and do nothing else.
_MODELS = {"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM"}
_LAYERS = {"LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer"}

_Step = tuple[Kernel, bytes]


@dataclass(frozen=True, slots=True)
class _Buffers:
    """What the kernels of a pass read and write, for at most so many rows. All of them (rows, …)."""

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
    logits: Tensor  # float32
    table: Tensor  # (rows, blocks of the longest sequence) int32
    lengths: Tensor  # int32
    rows: Tensor  # int64
    memory: Tensor  # int8, for the linears


class DecodePrograms:
    """One for each number of rows, listed when first wanted."""

    def __init__(self, model: Any, cache: KVCache) -> None:
        """Raises ValueError if `model` is not one that can be listed."""
        _check(model)
        self._model, self._cache = model, cache
        self._layers: list[Any] = list(model.model.layers)
        self._dtype: torch.dtype = model.model.embed_tokens.weight.dtype
        self._buffers: _Buffers | None = None
        self._programs: dict[int, Program] = {}

    def decode(self, token_ids: Items[int], positions: Items[int], block_ids: Items[Items[int]]) -> Tensor:
        """Logits (num_seqs, vocab_size) float32. The next call overwrites them."""
        count = len(token_ids)
        table, lengths, rows = decode_inputs(self._cache.block_size, block_ids, positions, count)
        buffers = self._room_for(count, table.shape[1])
        if count not in self._programs:
            self._programs[count] = self._listed(buffers, count)
        inner = self._model.model
        torch.index_select(inner.embed_tokens.weight, 0, torch.tensor(token_ids), out=buffers.hidden[:count])
        cos, sin = inner.rotary_emb(buffers.hidden, torch.tensor([positions]))
        buffers.cos[:count], buffers.sin[:count] = cos[0], sin[0]
        buffers.table[:count, : table.shape[1]] = table
        buffers.lengths[:count], buffers.rows[:count] = lengths, rows
        self._programs[count].run()
        return buffers.logits[:count, : self._model.lm_head.out_features]

    def _room_for(self, num_rows: int, num_blocks: int) -> _Buffers:
        has_rows, has_blocks = self._buffers.table.shape if self._buffers else (0, 0)
        if self._buffers is None or num_rows > has_rows or num_blocks > has_blocks:
            num_rows, num_blocks = max(has_rows, _rounded_up(num_rows)), max(has_blocks, _rounded_up(num_blocks))
            self._buffers = self._allocate(num_rows, num_blocks)
            self._programs.clear()
        return self._buffers

    def _allocate(self, num_rows: int, num_blocks: int) -> _Buffers:
        attention, mlp = self._layers[0].self_attn, self._layers[0].mlp
        heads, kv_heads = attention.num_heads, attention.num_kv_heads
        head_dim = attention.qkv_proj.out_features // (heads + 2 * kv_heads)
        hidden_size = self._model.model.embed_tokens.embedding_dim
        cos, _ = self._model.model.rotary_emb(torch.zeros(1, dtype=self._dtype), torch.zeros(1, 1, dtype=torch.int64))
        linears = [module for module in self._model.modules() if isinstance(module, CompiledLinear)]

        def of(*shape: int, dtype: torch.dtype = self._dtype) -> Tensor:
            return torch.zeros(num_rows, *shape, dtype=dtype)

        return _Buffers(
            hidden=of(hidden_size),
            normed=of(hidden_size),
            delta=of(hidden_size),
            cos=of(head_dim, dtype=cos.dtype),
            sin=of(head_dim, dtype=cos.dtype),
            qkv=of(attention.qkv_proj.out_features),
            query=of(heads, head_dim),
            attended=of(heads, head_dim),
            gate_up=of(mlp.gate_up_proj.out_features),
            product=of(mlp.down_proj.in_features),
            logits=of(self._model.lm_head.padded_features, dtype=torch.float32),
            table=of(num_blocks, dtype=torch.int32),
            lengths=of(dtype=torch.int32),
            rows=of(dtype=torch.int64),
            memory=torch.zeros(max(linear.memory_bytes(num_rows) for linear in linears) + 64, dtype=torch.int8),
        )

    def _listed(self, buffers: _Buffers, num_rows: int) -> Program:
        steps: list[_Step] = []
        for layer in self._layers:
            steps += self._norm(layer.input_layernorm, buffers, num_rows, is_first=not steps)
            steps += self._attention(layer.self_attn, buffers, num_rows)
            steps += self._norm(layer.post_attention_layernorm, buffers, num_rows)
            steps += self._mlp(layer.mlp, buffers, num_rows)
        steps += self._norm(self._model.model.norm, buffers, num_rows)
        steps.append(self._model.lm_head.step(buffers.normed[:num_rows], buffers.logits, buffers.memory))
        return Program(steps, keep=buffers)

    def _kernel(self, name: str, *others: torch.dtype) -> Kernel:
        found = kernels.kernel(name, *(dtype is torch.bfloat16 for dtype in (self._dtype, *others)))
        assert found is not None
        return found

    def _norm(self, norm: Any, buffers: _Buffers, num_rows: int, *, is_first: bool = False) -> list[_Step]:
        hidden, delta, normed = (each[:num_rows] for each in (buffers.hidden, buffers.delta, buffers.normed))
        if is_first:
            return [(self._kernel("rows.rms_norm"), arguments.rms_norm(hidden, norm.weight, normed, norm.eps))]
        words = arguments.add_rms_norm(hidden, delta, norm.weight, normed, norm.eps)
        return [(self._kernel("rows.add_rms_norm"), words)]

    def _attention(self, attention: Any, buffers: _Buffers, num_rows: int) -> list[_Step]:
        b, form = buffers, attention.form
        query = b.query[:num_rows]
        like = b.qkv.new_empty(0, attention.num_kv_heads, query.shape[-1])
        keys, values = self._cache.layer(attention.layer_idx, like, like)
        rotate = arguments.rope_and_write(b.qkv, b.cos, b.sin, keys, values, b.rows, query)
        attend = arguments.attention(
            query, keys, values, b.table, b.lengths, b.attended, form.scaling, form.sliding_window, form.softcap
        )
        return [
            attention.qkv_proj.step(b.normed[:num_rows], b.qkv, b.memory),
            (self._kernel("rows.rope_and_write", b.cos.dtype, keys.dtype), rotate),
            (self._kernel("decode.attention", keys.dtype), attend),
            attention.o_proj.step(b.attended[:num_rows].flatten(1), b.delta, b.memory),
        ]

    def _mlp(self, mlp: Any, buffers: _Buffers, num_rows: int) -> list[_Step]:
        product = buffers.product[:num_rows]
        return [
            mlp.gate_up_proj.step(buffers.normed[:num_rows], buffers.gate_up, buffers.memory),
            (self._kernel("rows.silu_mul"), arguments.silu_mul(buffers.gate_up, product)),
            mlp.down_proj.step(product, buffers.delta, buffers.memory),
        ]


def _rounded_up(number: int) -> int:
    return max(8, 1 << (number - 1).bit_length())


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
    for linear in [*linears, model.lm_head]:
        if not isinstance(linear, CompiledLinear):
            raise ValueError("its linears have no kernel")
    if any(linear.padded_features != linear.out_features or not (linear.dtype is linear.out_dtype is dtype) for linear in linears):
        raise ValueError("its linears are of an odd width")
    if model.lm_head.dtype is not dtype or model.lm_head.out_dtype is not torch.float32:
        raise ValueError("its head is of another dtype")
