"""The weights of a Llama-like decoder as a GPU's forward pass reads them, and their extraction from a transformers model.

Each layer computes x += factor * attention(norm(x)), then x += factor * gated_mlp(norm(x)), and nothing else. q, k and v are
one linear layer, and so are gate and up. Does not import the transformers models, which takes more than a second.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from inference_server.attention.torch_attention import AttentionSpec
from inference_server.gpu.linear import Int8Linear, Linear16, can_multiply_int8, has_outlier_threshold, stacked
from inference_server.gpu.paths import FAMILIES, SUPPORTED_ARCHITECTURES
from inference_server.linears.plain import is_int8

# Classes are compared by name, not by isinstance, because a subclass may compute something else.
_LAYERS = {f"{family}DecoderLayer" for family in FAMILIES}
_ATTENTIONS = {f"{family}Attention" for family in FAMILIES}
_MLPS = {f"{family}MLP" for family in FAMILIES}
_SILUS = {"SiLU", "SiLUActivation"}  # torch's class and transformers' class
_NORMS = {f"{family}RMSNorm" for family in FAMILIES}
# Classes that read the sliding window of every layer from the configuration.
_WINDOWED = {"MistralAttention", "Phi3Attention"}

Linear = Linear16 | Int8Linear


@dataclass(frozen=True, slots=True)
class Rotary:
    """The rotary position embedding. Its frequencies do not depend on the sequence's length."""

    frequencies: Tensor  # (head_dim,) float32, the head_dim / 2 inverse frequencies twice in a row
    scaling: float  # factor that multiplies sines and cosines

    def angles(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return the scaled cosines and sines of the positions' angles, each (num_tokens, head_dim) float32."""
        angles = positions.float()[:, None] * self.frequencies
        if self.scaling == 1.0:
            return angles.cos(), angles.sin()
        return angles.cos() * self.scaling, angles.sin() * self.scaling


@dataclass(frozen=True, slots=True)
class GpuLayer:
    """The weights of one layer. The norms of query and key heads are None unless the architecture has them (Qwen 3)."""

    input_norm: Tensor  # (hidden_size,)
    qkv: Linear  # (num_heads + 2 * num_kv_heads) * head_dim outputs
    query_norm: Tensor | None  # (head_dim,)
    key_norm: Tensor | None  # (head_dim,)
    attention: AttentionSpec
    output: Linear
    post_norm: Tensor  # (hidden_size,)
    gate_up: Linear  # the outputs of gate, then of up
    down: Linear
    rotates: bool = True  # False: attention ignores positions


@dataclass(frozen=True, slots=True)
class GpuDecoder:
    """A decoder's weights. Embedding, norms, unquantised layers and activations have one dtype."""

    embedding: Tensor  # (vocab_size, hidden_size)
    rotary: Rotary
    layers: list[GpuLayer]
    norm: Tensor  # (hidden_size,)
    head: Linear
    eps: float  # epsilon of all norms
    num_heads: int
    num_kv_heads: int
    head_dim: int
    embedding_factor: float = 1.0
    residual_factor: float = 1.0  # multiplies the outputs of attention and MLP
    logits_divisor: float = 1.0

    @property
    def has_unrotated(self) -> bool:
        """Return True if the attention of any layer ignores positions."""
        return not all(layer.rotates for layer in self.layers)


def extract(model: Any) -> GpuDecoder:
    """Return the weights of a transformers model, and remove the linear layers in its decoder layers.

    The model can then no longer run.

    The layers are stacked and removed one after the other. So the memory in use never exceeds that of the model by more
    than one layer.

    Raises:
        ValueError: The fused forward pass does not support this model. The model is then unchanged, and the message is
            the reason, as a clause.
    """
    _check_model(model)
    inner, config = model.model, model.config
    attention = inner.layers[0].self_attn
    rotary = inner.rotary_emb
    with torch.no_grad():
        return GpuDecoder(
            embedding=inner.embed_tokens.weight.detach(),
            rotary=Rotary(rotary.inv_freq.detach().float().repeat(2), float(rotary.attention_scaling)),
            head=stacked([model.lm_head]),
            layers=[_extracted(layer) for layer in inner.layers],
            norm=inner.norm.weight.detach(),
            eps=inner.norm.variance_epsilon,
            num_heads=config.num_attention_heads,
            num_kv_heads=config.num_key_value_heads,
            head_dim=attention.head_dim,
            embedding_factor=float(getattr(config, "embedding_multiplier", None) or 1.0),
            residual_factor=float(getattr(config, "residual_multiplier", None) or 1.0),
            logits_divisor=float(getattr(config, "logits_scaling", None) or 1.0),
        )


def _extracted(layer: Any) -> GpuLayer:
    """Return a layer's weights, and remove its linear layers."""
    attention, mlp = layer.self_attn, layer.mlp
    query_norm, key_norm = (getattr(attention, name, None) for name in ("q_norm", "k_norm"))
    return GpuLayer(
        input_norm=layer.input_layernorm.weight.detach(),
        qkv=_taken(attention, *_names(attention, "qkv_proj", "q_proj", "k_proj", "v_proj")),
        query_norm=None if query_norm is None else query_norm.weight.detach(),
        key_norm=None if key_norm is None else key_norm.weight.detach(),
        attention=AttentionSpec(attention.scaling, _window(attention)),
        output=_taken(attention, "o_proj"),
        post_norm=layer.post_attention_layernorm.weight.detach(),
        gate_up=_taken(mlp, *_names(mlp, "gate_up_proj", "gate_proj", "up_proj")),
        down=_taken(mlp, "down_proj"),
        rotates=bool(getattr(attention, "use_rope", True)),
    )


def _names(parent: nn.Module, stacked_name: str, *names: str) -> tuple[str, ...]:
    """Return `names`, or the name of the layer that already contains them, stacked."""
    return (stacked_name,) if hasattr(parent, stacked_name) else names


def _taken(parent: nn.Module, *names: str) -> Linear:
    """Stack the layers `names` of a module into one, and remove them from the module."""
    linear = stacked([getattr(parent, name) for name in names])
    for name in names:
        setattr(parent, name, None)
    return linear


def _window(attention: Any) -> int | None:
    """Return the sliding window of an attention module in tokens, or None."""
    holder = attention.config if type(attention).__name__ in _WINDOWED else attention
    window: int | None = getattr(holder, "sliding_window", None)
    return window


def _check_model(model: Any) -> None:
    """Raise ValueError if the fused forward pass does not support the model."""
    if type(model).__name__ not in SUPPORTED_ARCHITECTURES:
        raise ValueError("there is no fused decoder for its architecture")
    if has_outlier_threshold(model):
        raise ValueError(
            "its int8 layers separate outliers (TAILRACE_INT8_THRESHOLD), which needs bitsandbytes' layers"
        )
    inner = model.model
    dtype = inner.embed_tokens.weight.dtype
    if type(inner.embed_tokens) is not nn.Embedding or type(model.lm_head) is not nn.Linear:
        raise ValueError("its embedding or its output head is not torch's")
    # longrope has two sets of frequencies, and the sequence's length selects one. Rotary has a single set.
    if getattr(inner.rotary_emb, "rope_type", "default") == "longrope":
        raise ValueError("its rotary positions (longrope) depend on the sequence's length")
    if inner.rotary_emb.inv_freq.numel() * 2 != inner.layers[0].self_attn.head_dim:
        raise ValueError("it rotates only a part of each head")
    for layer in inner.layers:
        _check_layer(layer, dtype)
    norms = list(_norms(inner))
    if any(type(norm).__name__ not in _NORMS or norm.weight.dtype is not dtype for norm in norms):
        raise ValueError("its norms are not RMS norms in the dtype of its embedding")
    if any(norm.variance_epsilon != inner.norm.variance_epsilon for norm in norms):
        raise ValueError("its norms differ in epsilon")
    types = getattr(model.config, "layer_types", None) or []
    windows = [_window(layer.self_attn) is not None for layer in inner.layers]
    if types and [kind == "sliding_attention" for kind in types] != windows:
        raise ValueError("its sliding windows differ from its configuration")


def _norms(inner: Any) -> Iterator[Any]:
    """Yield every norm of a decoder, including those of query and key heads."""
    yield inner.norm
    for layer in inner.layers:
        yield layer.input_layernorm
        yield layer.post_attention_layernorm
        for name in ("q_norm", "k_norm"):
            if (norm := getattr(layer.self_attn, name, None)) is not None:
                yield norm


def _check_layer(layer: Any, dtype: torch.dtype) -> None:
    """Raise ValueError if the fused forward pass does not support the layer. `dtype`: dtype of the embedding."""
    attention, mlp = layer.self_attn, layer.mlp
    names = (type(layer).__name__, type(attention).__name__, type(mlp).__name__)
    if names[0] not in _LAYERS or names[1] not in _ATTENTIONS or names[2] not in _MLPS:
        raise ValueError(f"there is no fused pass for its layers ({', '.join(names)})")
    activation = mlp.activation_fn if names[2] == "Phi3MLP" else mlp.act_fn
    if type(activation).__name__ not in _SILUS:
        raise ValueError("its MLP's activation is not SiLU")
    groups = [
        [getattr(attention, name) for name in _names(attention, "qkv_proj", "q_proj", "k_proj", "v_proj")],
        [attention.o_proj],
        [getattr(mlp, name) for name in _names(mlp, "gate_up_proj", "gate_proj", "up_proj")],
        [mlp.down_proj],
    ]
    for group in groups:
        if all(is_int8(linear) for linear in group):
            if not all(can_multiply_int8(linear) for linear in group):
                raise ValueError("only Triton kernels multiply its int8 weights")
        elif any(type(linear) is not nn.Linear or linear.weight.dtype is not dtype for linear in group):
            raise ValueError("its linear layers are neither torch's, in the dtype of its embedding, nor int8")
