"""The weights of a Llama-like decoder as the kernels read them, and their extraction from a transformers model.

Each layer computes x += factor * attention(norm(x)), then x += factor * gated_mlp(norm(x)), and nothing else. A
mixture of experts may replace the MLP. Does not import the transformers models, which takes more than a second.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from inference_server.attention.torch_attention import AttentionSpec
from inference_server.cpu.embedding import Embedding, StoredEmbedding
from inference_server.cpu.experts import PackedExperts
from inference_server.cpu.fused_modules import FusedAttention, FusedMLP, FusedRMSNorm
from inference_server.cpu.linear.kernel_linear import KernelLinear
from inference_server.cpu.routers import PackedRouter
from inference_server.kernels import ops
from inference_server.kernels.isa.choice import obstacle
from inference_server.kernels.jit.arguments import HeadNorms
from inference_server.linears.share import WEIGHT_FORMATS, QuantisedShare
from inference_server.precision import Precision

# Decoders that a kernel program computes, by the names of their classes in transformers.
_FAMILIES = ("Granite", "Llama", "Mistral", "Mixtral", "Phi3", "Qwen2", "Qwen3", "Qwen3Moe", "SeedOss", "SmolLM3")
MODELS = {f"{family}ForCausalLM" for family in _FAMILIES}
_LAYERS = {f"{family}DecoderLayer" for family in _FAMILIES}
# Classes of blocks that choose experts, add up their weighted results, and compute nothing else.
_EXPERT_BLOCKS = {"MixtralSparseMoeBlock", "Qwen3MoeSparseMoeBlock"}


_MAX_LANES = 16  # kernels of norms compute whole vectors, of at most this many numbers


@dataclass(frozen=True, slots=True)
class Rotary:
    """The rotary position embedding. Its frequencies do not depend on the sequence's length."""

    inverse_frequencies: Tensor  # (head_dim / 2,) float32
    scaling: float  # a factor on sines and cosines

    def angles(self, positions: Tensor, cos: Tensor, sin: Tensor) -> None:
        """Write the positions' cosines and sines, each angle in both halves of the row.

        Args:
            positions: (num_tokens,) int64.
            cos: (num_tokens, head_dim), float32 or bfloat16, overwritten.
            sin: The same for the sines.
        """
        angles = positions.float()[:, None] * self.inverse_frequencies
        angles = torch.cat([angles, angles], dim=1)
        cos.copy_(angles.cos() * self.scaling)
        sin.copy_(angles.sin() * self.scaling)


@dataclass(frozen=True, slots=True)
class ExpertWeights:
    """The weights of a mixture of experts."""

    router: PackedRouter  # its product is a KernelLinear
    experts: PackedExperts  # its layers are KernelLinears

    @property
    def product(self) -> KernelLinear:
        """Return the linear layer that computes the router's scores."""
        assert isinstance(self.router.product, KernelLinear)
        return self.router.product

    @property
    def linears(self) -> "list[tuple[KernelLinear, KernelLinear]]":
        """Return two layers for each expert: gate and up as one gated layer, and down."""
        pairs = zip(self.experts.gate_up, self.experts.down, strict=True)
        return [(first, down) for first, down in pairs]  # type: ignore[misc]


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """The weights of one layer, which has an MLP or experts."""

    input_norm: Tensor  # (hidden_size,)
    qkv: KernelLinear
    attention: AttentionSpec
    output: KernelLinear
    post_norm: Tensor  # (hidden_size,)
    gate_up: KernelLinear | None  # a gated layer
    down: KernelLinear | None
    head_norms: HeadNorms | None = None  # norms of query and key heads before the rotation
    rotates: bool = True  # False: attention ignores positions
    experts: ExpertWeights | None = None

    @property
    def linears(self) -> list[KernelLinear]:
        """Return the layer's linear layers, without the router."""
        experts = self.experts.linears if self.experts else []
        others = [self.qkv, self.output, self.gate_up, self.down, *(each for pair in experts for each in pair)]
        return [linear for linear in others if linear is not None]


@dataclass(frozen=True, slots=True)
class DecoderWeights:
    """A decoder's weights.

    Embedding, norms and activations have one dtype, float32 or bfloat16. The head's output is float32. The last
    norm's weights have been divided by the model's divisor of the logits.
    """

    embedding: Embedding
    rotary: Rotary
    layers: list[LayerWeights]
    norm: Tensor
    head: KernelLinear
    eps: float  # epsilon of all norms
    num_heads: int
    num_kv_heads: int
    embedding_factor: float = 1.0
    residual_factor: float = 1.0  # multiplies the outputs of attention and MLP

    @property
    def dtype(self) -> torch.dtype:
        """Return the dtype of activations."""
        return self.embedding.dtype

    @property
    def head_dim(self) -> int:
        """Return the width of a head."""
        return self.layers[0].qkv.out_features // (self.num_heads + 2 * self.num_kv_heads)

    @property
    def linears(self) -> Iterator[KernelLinear]:
        """Yield every linear layer except routers, the head last."""
        for layer in self.layers:
            yield from layer.linears
        yield self.head

    @property
    def has_windows(self) -> bool:
        """Return True if any layer attends within a sliding window."""
        return any(layer.attention.sliding_window is not None for layer in self.layers)

    @property
    def norms(self) -> Iterator[Tensor]:
        """Yield the weights of every norm."""
        yield self.norm
        for layer in self.layers:
            yield from (layer.input_norm, layer.post_norm)
            if layer.head_norms is not None:
                yield from (layer.head_norms.query, layer.head_norms.key)

    @property
    def num_bytes(self) -> int:
        """Return the memory of all weights in bytes."""
        routers = [layer.experts.product for layer in self.layers if layer.experts]
        others = sum(tensor.nbytes for tensor in self.norms) + self.embedding.nbytes
        return others + sum(each.num_bytes for each in (*self.linears, *routers))


def decoder_share(decoder: DecoderWeights, precision: Precision) -> QuantisedShare | None:
    """Return the share of a packed decoder's parameters that is quantised; None if the precision quantises none."""
    if precision not in WEIGHT_FORMATS:
        return None
    linears = [*decoder.linears, *(layer.experts.product for layer in decoder.layers if layer.experts)]
    total = sum(tensor.numel() for tensor in decoder.norms) + decoder.embedding.numel()
    quantised = 0
    for linear in linears:
        count = linear.packed.shape[0] * linear.packed.shape[1]
        total += count
        quantised += count if linear.packed.kind.weight_format in ("int8", "int4") else 0
    return QuantisedShare(WEIGHT_FORMATS[precision], quantised, total, decoder.embedding.numel())


def extract_weights(model: Any) -> DecoderWeights:
    """Return the weights of a fused transformers model.

    Raises:
        ValueError: No kernel program computes this model; the message is the reason, as a clause.
    """
    if type(model).__name__ not in MODELS:
        raise ValueError("kernel programs do not support its architecture")
    if not ops.available():
        raise ValueError("compiled kernels are not available")
    inner = model.model
    if type(inner.embed_tokens) not in (nn.Embedding, StoredEmbedding):
        raise ValueError("its embedding layer is not torch's")
    layers = [_layer(layer) for layer in inner.layers]
    norms = [inner.norm]
    for layer in inner.layers:
        norms += [layer.input_layernorm, layer.post_attention_layernorm]
    if any(type(norm) is not FusedRMSNorm or norm.eps != inner.norm.eps for norm in norms):
        raise ValueError("its norms have no compiled kernel")
    if not isinstance(model.lm_head, KernelLinear):
        raise ValueError(f"its output head has no compiled kernel{_because(model.lm_head)}")
    attention, config = inner.layers[0].self_attn, model.config
    decoder = DecoderWeights(
        embedding=_embedding(inner.embed_tokens),
        rotary=_rotary(inner.rotary_emb),
        layers=layers,
        norm=_last_norm(inner.norm.weight.detach(), getattr(config, "logits_scaling", None) or 1.0),
        head=model.lm_head,
        eps=inner.norm.eps,
        num_heads=attention.num_heads,
        num_kv_heads=attention.num_kv_heads,
        embedding_factor=float(getattr(config, "embedding_multiplier", None) or 1.0),
        residual_factor=float(getattr(config, "residual_multiplier", None) or 1.0),
    )
    _check(decoder, config)
    return decoder


def _embedding(module: Any) -> Embedding:
    if isinstance(module, StoredEmbedding):
        return module
    weight: Tensor = module.weight.detach()
    return weight


def _layer(layer: Any) -> LayerWeights:
    attention, mlp = layer.self_attn, layer.mlp
    if type(layer).__name__ not in _LAYERS:
        raise ValueError("kernel programs do not support its layers")
    experts = _experts(mlp)
    if type(attention) is not FusedAttention or (type(mlp) is not FusedMLP and experts is None):
        raise ValueError("its attention or MLP has no fused module")
    linears: list[Any] = [attention.qkv_proj, attention.o_proj]
    linears += [None, None] if experts else [mlp.gate_up_proj, mlp.down_proj]
    if not all(linear is None or isinstance(linear, KernelLinear) for linear in linears):
        raise ValueError(f"its linear layers have no compiled kernel{_because(attention.qkv_proj)}")
    qkv, output, gate_up, down = linears
    if gate_up is not None and not gate_up.is_gated:
        raise ValueError("no kernel supports the width of its MLP")
    norms = (layer.input_layernorm.weight.detach(), layer.post_attention_layernorm.weight.detach())
    return LayerWeights(
        norms[0], qkv, attention.spec, output, norms[1], gate_up, down, attention.norms, attention.rotates, experts
    )


def _experts(block: Any) -> ExpertWeights | None:
    """Return the weights of a mixture of experts, or None for another module.

    Raises:
        ValueError: No kernel computes the mixture of experts.
    """
    if type(block).__name__ not in _EXPERT_BLOCKS:
        return None
    router, experts = block.gate, block.experts
    if not isinstance(experts, PackedExperts) or not experts.has_kernels or not isinstance(router, PackedRouter):
        raise ValueError(f"its experts have no compiled kernel{_because(nn.Identity())}")
    if not experts.is_plain:
        raise ValueError("no kernel supports the width or the activation of its experts")
    return ExpertWeights(router, experts)


def _last_norm(weight: Tensor, logits_divisor: float) -> Tensor:
    """Return the weights of the norm before the head, divided by the model's divisor of logits."""
    if not is_power_of_two(logits_divisor):
        raise ValueError("kernel programs do not support the scaling of its logits")
    return weight / logits_divisor if logits_divisor != 1.0 else weight


def is_power_of_two(number: float) -> bool:
    """Return True if weights can be divided by the number without rounding."""
    return math.frexp(number)[0] == 0.5


def _because(linear: nn.Module) -> str:
    """Return ", because …" with the reasons for a missing kernel, or "" if only the layer's shape is not supported."""
    is_float32 = type(linear) is nn.Linear and linear.weight.dtype is torch.float32
    reasons = ["no kernel multiplies float32 weights"] if is_float32 else []
    if missing := obstacle():
        reasons.append(missing)
    return f", because {' and '.join(reasons)}" if reasons else ""


def _rotary(module: Any) -> Rotary:
    """Return the rotary embedding. Its frequencies must not depend on the length, as RopeChoice.fix ensures.

    Raises:
        ValueError: The frequencies depend on the sequence's length.
    """
    if (kind := getattr(module, "rope_type", "default")) in ("longrope", "dynamic"):
        raise ValueError(f"its rotary positions ({kind}) depend on the sequence's length")
    return Rotary(module.inv_freq.detach().float(), float(module.attention_scaling))


def _check(decoder: DecoderWeights, config: Any) -> None:
    """Raise ValueError if kernels cannot read the weights, or if the layers' windows differ from the configuration."""
    dtype = decoder.dtype
    if dtype not in (torch.float32, torch.bfloat16):
        raise ValueError("its embedding is neither float32 nor bfloat16")
    if any(norm.dtype is not dtype for norm in decoder.norms):
        raise ValueError("its norms and its embedding differ in dtype")
    if any(norm.numel() % _MAX_LANES for norm in decoder.norms):
        raise ValueError("no kernel supports the width of its norms")
    if decoder.rotary.inverse_frequencies.numel() * 2 != decoder.head_dim:
        raise ValueError("it rotates only a part of each head")
    for layer in decoder.layers:
        if any(linear.padded_features != linear.out_features for linear in layer.linears):
            raise ValueError("the outputs of its linear layers do not fill whole panels")
        if any(not (linear.dtype is linear.out_dtype is dtype) for linear in layer.linears):
            raise ValueError("its linear layers and its embedding differ in dtype")
    if decoder.head.dtype is not dtype or decoder.head.out_dtype is not torch.float32:
        raise ValueError("its output head has another dtype than the kernels return")
    types = getattr(config, "layer_types", None) or []
    windows = [layer.attention.sliding_window is not None for layer in decoder.layers]
    if types and [kind == "sliding_attention" for kind in types] != windows:
        raise ValueError("its sliding windows differ from its configuration")
