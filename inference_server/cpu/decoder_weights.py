"""A decoder of Llama's shape, taken apart into what kernels read: no modules of transformers, which take long to import.

Each layer adds the attention of its normed input, then the gated MLP of the normed sum, and nothing else.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from inference_server.attention.torch_attention import Form
from inference_server.cpu.fused_modules import FusedAttention, FusedMLP, FusedRMSNorm
from inference_server.cpu.linear.amx.layers import CompiledLinear
from inference_server.kernels import ops as kernels

_MODELS = {"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM"}
_LAYERS = {"LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer"}


@dataclass(frozen=True, slots=True)
class Rotary:
    """Angles of rotary positions, each frequency twice (two halves). The frequencies do not change with the length."""

    inverse_frequencies: Tensor  # (head_dim / 2,) float32
    scaling: float

    def angles(self, positions: Tensor, cos: Tensor, sin: Tensor) -> None:
        """positions (n,) int64; writes into cos and sin (n, head_dim)."""
        angles = positions.float()[:, None] * self.inverse_frequencies
        angles = torch.cat([angles, angles], dim=1)
        cos.copy_(angles.cos() * self.scaling)
        sin.copy_(angles.sin() * self.scaling)


@dataclass(frozen=True, slots=True)
class Layer:
    input_norm: Tensor  # (hidden_size,), as the other norms
    qkv: CompiledLinear
    form: Form
    output: CompiledLinear
    post_norm: Tensor
    gate_up: CompiledLinear  # gated
    down: CompiledLinear

    @property
    def linears(self) -> list[CompiledLinear]:
        return [self.qkv, self.output, self.gate_up, self.down]


@dataclass(frozen=True, slots=True)
class Decoder:
    """All of one dtype, float32 or bfloat16, but for the insides of the linears and the head's output, float32."""

    embedding: Tensor  # (vocab_size, hidden_size)
    rotary: Rotary
    layers: list[Layer]
    norm: Tensor
    head: CompiledLinear
    eps: float  # of every norm
    num_heads: int
    num_kv_heads: int

    @property
    def dtype(self) -> torch.dtype:
        return self.embedding.dtype

    @property
    def head_dim(self) -> int:
        return self.layers[0].qkv.out_features // (self.num_heads + 2 * self.num_kv_heads)

    @property
    def linears(self) -> Iterator[CompiledLinear]:
        for layer in self.layers:
            yield from layer.linears
        yield self.head

    @property
    def has_windows(self) -> bool:
        return any(layer.form.sliding_window is not None for layer in self.layers)

    @property
    def num_bytes(self) -> int:
        norms = [self.norm, *(norm for layer in self.layers for norm in (layer.input_norm, layer.post_norm))]
        return sum(tensor.nbytes for tensor in (self.embedding, *norms)) + sum(each.num_bytes for each in self.linears)


def decoder_of(model: Any) -> Decoder:
    """The parts of a fused model of transformers. Raises ValueError, which tells why, for one of another shape."""
    if type(model).__name__ not in _MODELS or not kernels.available():
        raise ValueError("its architecture is not known")
    inner = model.model
    if type(inner.embed_tokens) is not nn.Embedding:
        raise ValueError("its embedding is not plain")
    layers = [_layer(layer) for layer in inner.layers]
    norms = [inner.norm]
    for layer in inner.layers:
        norms += [layer.input_layernorm, layer.post_attention_layernorm]
    if any(type(norm) is not FusedRMSNorm or norm.eps != inner.norm.eps for norm in norms):
        raise ValueError("its norms are not fused")
    if not isinstance(model.lm_head, CompiledLinear):
        raise ValueError("its head has no kernel")
    attention = inner.layers[0].self_attn
    decoder = Decoder(
        embedding=inner.embed_tokens.weight.detach(),
        rotary=_rotary(inner.rotary_emb),
        layers=layers,
        norm=inner.norm.weight.detach(),
        head=model.lm_head,
        eps=inner.norm.eps,
        num_heads=attention.num_heads,
        num_kv_heads=attention.num_kv_heads,
    )
    _check(decoder, model.config)
    return decoder


def _layer(layer: Any) -> Layer:
    attention, mlp = layer.self_attn, layer.mlp
    if type(layer).__name__ not in _LAYERS:
        raise ValueError("its layers are not known")
    if type(attention) is not FusedAttention or type(mlp) is not FusedMLP:
        raise ValueError("its layers are not fused")
    linears: list[Any] = [attention.qkv_proj, attention.o_proj, mlp.gate_up_proj, mlp.down_proj]
    if not all(isinstance(linear, CompiledLinear) for linear in linears):
        raise ValueError("its linears have no kernel")
    qkv, output, gate_up, down = linears
    if not gate_up.is_gated:
        raise ValueError("its MLP has no kernel")
    norms = (layer.input_layernorm.weight.detach(), layer.post_attention_layernorm.weight.detach())
    return Layer(norms[0], qkv, attention.form, output, norms[1], gate_up, down)


def _rotary(module: Any) -> Rotary:
    """longrope has two sets of frequencies; dynamic scaling begins beyond the window that is served (preparation.py)."""
    if getattr(module, "rope_type", "default") == "longrope":
        raise ValueError("its positions are not plain")
    return Rotary(module.inv_freq.detach().float(), float(module.attention_scaling))


def _check(decoder: Decoder, config: Any) -> None:
    dtype = decoder.dtype
    if dtype not in (torch.float32, torch.bfloat16):
        raise ValueError("its embedding is of another dtype")
    norms = [decoder.norm, *(norm for layer in decoder.layers for norm in (layer.input_norm, layer.post_norm))]
    if any(norm.dtype is not dtype for norm in norms):
        raise ValueError("its norms are of another dtype")
    for layer in decoder.layers:
        if any(linear.padded_features != linear.out_features for linear in layer.linears):
            raise ValueError("its linears are of an odd width")
        if any(not (linear.dtype is linear.out_dtype is dtype) for linear in layer.linears):
            raise ValueError("its linears are of another dtype")
    if decoder.head.dtype is not dtype or decoder.head.out_dtype is not torch.float32:
        raise ValueError("its head is of another dtype")
    types = getattr(config, "layer_types", None) or []
    windows = [layer.form.sliding_window is not None for layer in decoder.layers]
    if types and [kind == "sliding_attention" for kind in types] != windows:
        raise ValueError("its windows are not those of its configuration")
