"""Replaces modules of a loaded transformers model with faster ones for CPUs.

The replacements use fewer and larger matrix products: q, k and v in one, gate and up in one. They use one kernel where
transformers calls several operations. Their results are the same up to rounding. Other modules stay unchanged.
"""

from collections.abc import Callable
from collections.abc import Sequence as Items
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from inference_server.attention.paged import Projections
from inference_server.attention.rope import rotates_partly
from inference_server.attention.torch_attention import AttentionSpec
from inference_server.cpu.experts import pack_experts
from inference_server.cpu.linear.backends import BACKENDS, LinearBackend
from inference_server.cpu.linear.pack import pack, pack_linears
from inference_server.cpu.routers import is_router, pack_router
from inference_server.kernels import ops
from inference_server.kernels.jit.arguments import HeadNorms
from inference_server.linears.experts import SILUS, is_stack
from inference_server.precision import Precision, activation_dtype

# Attention classes whose forward is: project, normalise the heads of q and k if the layer has norms, rotate whole heads in
# halves if the layer uses positions, attend, project. Classes are compared by name, not by isinstance, because a subclass may
# compute something else in between.
_ATTENTIONS = {
    "GraniteAttention",
    "LlamaAttention",
    "MistralAttention",
    "MixtralAttention",
    "Phi3Attention",
    "Qwen2Attention",
    "Qwen2MoeAttention",
    "Qwen3Attention",
    "Qwen3MoeAttention",
    "SeedOssAttention",
    "SmolLM3Attention",
}
# Classes that read the sliding window of every layer from the configuration.
_WINDOWED = {"MistralAttention", "MixtralAttention", "Phi3Attention"}
_MLPS = {
    "GraniteMLP",
    "LlamaMLP",
    "MistralMLP",
    "Phi3MLP",
    "Qwen2MLP",
    "Qwen2MoeMLP",
    "Qwen3MLP",
    "Qwen3MoeMLP",
    "SeedOssMLP",
    "SmolLM3MLP",
}
_NORMS = {
    "GraniteRMSNorm",
    "LlamaRMSNorm",
    "MistralRMSNorm",
    "MixtralRMSNorm",
    "OlmoeRMSNorm",
    "Phi3RMSNorm",
    "Qwen2MoeRMSNorm",
    "Qwen2RMSNorm",
    "Qwen3MoeRMSNorm",
    "Qwen3RMSNorm",
    "SeedOssRMSNorm",
    "SmolLM3RMSNorm",
}

_Pack = Callable[..., nn.Module]


def _head_norms(attention: Any) -> HeadNorms | None:
    """Return the norms of query and key heads, or None if the layer has none."""
    query, key = (getattr(attention, name, None) for name in ("q_norm", "k_norm"))
    if query is None or key is None:
        return None
    return HeadNorms(query.weight.detach(), key.weight.detach(), query.variance_epsilon)


class FusedAttention(nn.Module):
    """Attention with one matrix product for q, k and v, and one kernel for rotation and writing to the KV cache."""

    def __init__(self, attention: Any, packed: _Pack) -> None:
        """Pack the weights of transformers' `attention`. `packed`: `pack` with its options bound."""
        super().__init__()
        config = attention.config
        self.layer_idx: int = attention.layer_idx
        self.num_heads: int = config.num_attention_heads
        self.num_kv_heads: int = config.num_key_value_heads
        holder = config if type(attention).__name__ in _WINDOWED else attention
        self.spec = AttentionSpec(attention.scaling, getattr(holder, "sliding_window", None))
        self.rotates = bool(getattr(attention, "use_rope", True))
        self.norms = _head_norms(attention)
        stacked = getattr(attention, "qkv_proj", None)
        projections = [attention.q_proj, attention.k_proj, attention.v_proj] if stacked is None else [stacked]
        self.qkv_proj = packed(projections)
        self.o_proj = packed([attention.o_proj])

    def forward(
        self, hidden_states: Tensor, position_embeddings: tuple[Tensor, Tensor], *, step_batch: Any, **_: Any
    ) -> tuple[Tensor, None]:
        """Return the attention's output, in the shape of `hidden_states` (batch, num_tokens, hidden_size)."""
        qkv = self.qkv_proj(hidden_states).flatten(0, 1)
        cos, sin = (angles.flatten(0, 1) for angles in position_embeddings)
        if not self.rotates:
            cos, sin = torch.ones_like(cos), torch.zeros_like(sin)
        parts = Projections(qkv, cos, sin, self.num_heads, self.num_kv_heads, self.norms)
        output = step_batch.attend_fused(self.layer_idx, parts, self.spec)
        return self.o_proj(output.reshape(*hidden_states.shape[:-1], -1)), None


class FusedMLP(nn.Module):
    """A gated MLP with one matrix product for gate and up, and silu(gate) * up in the same kernel if one exists."""

    def __init__(self, mlp: Any, packed: _Pack) -> None:
        """Pack the weights of transformers' `mlp`. `packed`: `pack` with its options bound."""
        super().__init__()
        stacked = getattr(mlp, "gate_up_proj", None)
        gate_up = [mlp.gate_proj, mlp.up_proj] if stacked is None else [stacked]
        self.gate_up_proj = packed(gate_up, is_gated=True)
        self.down_proj = packed([mlp.down_proj])

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Return the MLP's output, in the shape of `hidden_states` (…, hidden_size)."""
        product: Tensor = self.gate_up_proj(hidden_states)
        if not getattr(self.gate_up_proj, "is_gated", False):
            product = ops.silu_mul(product.flatten(0, -2)).view(*product.shape[:-1], -1)
        down: Tensor = self.down_proj(product)
        return down


class FusedRMSNorm(nn.Module):
    """An RMS norm in one kernel."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.weight = norm.weight
        self.eps: float = norm.variance_epsilon

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Return the normalised rows, in the shape of `hidden_states` (…, hidden_size)."""
        shape = hidden_states.shape
        return ops.rms_norm(hidden_states.flatten(0, -2), self.weight, self.eps).view(shape)


@torch.inference_mode()
def fuse(
    model: nn.Module, precision: Precision, *, batch_invariant: bool, backends: Items[LinearBackend] = BACKENDS
) -> None:
    """Replace modules of a model on a CPU in place: attention, MLPs, experts, norms, and every remaining linear layer.

    Args:
        model: A transformers causal language model.
        precision: The precision in which linear layers are packed.
        batch_invariant: A row's result must be bit-identical for every batch composition.
        backends: The candidates for linear layers, of which the first that supports a layer is used.
    """
    packed = partial(pack, precision=precision, batch_invariant=batch_invariant, backends=backends)
    dtype = activation_dtype(precision, torch.device("cpu"))
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if is_stack(child):
                setattr(parent, name, pack_experts(child, packed, dtype, batch_invariant=batch_invariant))
            elif is_router(child) and precision != "float32":
                setattr(parent, name, pack_router(child, backends) or child)
            elif replacement := _replacement(child, packed):
                setattr(parent, name, replacement)
    pack_linears(model, precision, batch_invariant=batch_invariant, backends=backends)


def _replacement(module: nn.Module, packed: _Pack) -> nn.Module | None:
    """Return the faster module for a transformers module, or None if there is none."""
    name = type(module).__name__
    if name in _ATTENTIONS and not rotates_partly(module.config):
        return FusedAttention(module, packed)
    activation = getattr(module, "activation_fn" if name == "Phi3MLP" else "act_fn", None)
    if name in _MLPS and type(activation).__name__ in SILUS:
        return FusedMLP(module, packed)
    if name in _NORMS:
        return FusedRMSNorm(module)
    return None
