"""Routers of mixture-of-experts models on a CPU: a compiled kernel computes the scores of the experts for each token.

A router chooses between experts, so its result must not change with the number of rows. torch's float32 products depend
on that number. A kernel's product does not, but kernels multiply only bfloat16 and integers. So a float32 weight
becomes the sum of two int8 weights: the rounded weight, and the rounded remainder. Together they have about 15 bits.
"""

from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from inference_server.cpu.linear.backends import LinearBackend, choose_backend
from inference_server.cpu.linear.integer_weights import Int8, int8_weights
from inference_server.cpu.linear.kernel_linear import LinearKind
from inference_server.cpu.linear.torch_backend import TorchBackend
from inference_server.linears.plain import PlainLinear

# Routers by class name, because a subclass may choose experts in another way. The value is True if the softmax is
# computed over all experts before the choice, False if it is computed over the chosen experts only.
_ROUTERS = {
    "MixtralTopKRouter": True,
    "OlmoeTopKRouter": True,
    "Qwen2MoeTopKRouter": True,
    "Qwen3MoeTopKRouter": True,
    "GptOssTopKRouter": False,
}


def is_router(module: nn.Module) -> bool:
    """Return True for a router that PackedRouter can replace."""
    return type(module).__name__ in _ROUTERS


def pack_router(router: Any, backends: Items[LinearBackend]) -> "PackedRouter | None":
    """Return the router with its weights packed for this CPU, or None if no kernel multiplies them.

    Args:
        router: A module that `is_router` accepts.
        backends: The candidates for the product of its weights.
    """
    weight, bias = router.weight.detach(), getattr(router, "bias", None)
    bias = None if bias is None else bias.detach()
    is_bf16 = weight.dtype is torch.bfloat16
    backend = choose_backend("bf16" if is_bf16 else "int8", weight.shape[1], backends)
    if isinstance(backend, TorchBackend):
        return None
    if is_bf16:
        product = backend.pack(weight, bias, LinearKind("bf16", is_head=True))
    else:
        halves = None if bias is None else torch.cat([bias, torch.zeros_like(bias)])
        product = backend.pack(_two_halves(weight.float()), halves, LinearKind("int8", is_head=True))
    choice = RouterChoice(
        num_chosen=router.top_k,
        is_split=not is_bf16,
        is_softmax_first=_ROUTERS[type(router).__name__],
        is_normalized=bool(getattr(router, "norm_topk_prob", True)),
    )
    return PackedRouter(product, choice)


def _two_halves(weight: Tensor) -> Int8:
    """Return int8 weights whose first and second half of the outputs add up to `weight` (outputs, inputs) float32."""
    rounded = int8_weights([PlainLinear(weight)])
    left = int8_weights([PlainLinear(weight - rounded.dequantize())])
    return Int8(torch.cat([rounded.codes, left.codes]), torch.cat([rounded.scales, left.scales]))


@dataclass(frozen=True, slots=True)
class RouterChoice:
    """The way in which a router chooses experts.

    Attributes:
        num_chosen: The number of experts of a token.
        is_split: The first and second half of the product's outputs are added.
        is_softmax_first: The softmax is computed over all experts, not only over the chosen ones.
        is_normalized: The weights of the chosen experts add up to 1. Without effect unless `is_softmax_first`.
    """

    num_chosen: int
    is_split: bool
    is_softmax_first: bool
    is_normalized: bool


class PackedRouter(nn.Module):
    """Chooses the experts of each token.

    Attributes:
        product: The packed linear layer that computes the scores.
        choice: The way in which the router chooses experts.
    """

    def __init__(self, product: nn.Module, choice: RouterChoice) -> None:
        """Store the packed linear layer and the way in which experts are chosen."""
        super().__init__()
        self.product = product
        self.choice = choice

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits (num_tokens, num_experts), and weights and indices of the chosen experts, (num_tokens, k).

        The argument is (…, hidden_size); its leading dimensions are the tokens.
        """
        choice = self.choice
        logits: Tensor = self.product(hidden_states.flatten(0, -2))
        if choice.is_split:
            rounded, left = logits.chunk(2, dim=-1)
            logits = rounded + left
        if choice.is_softmax_first:
            weights, chosen = torch.softmax(logits, dim=-1).topk(choice.num_chosen, dim=-1)
            if choice.is_normalized:
                weights = weights / weights.sum(dim=-1, keepdim=True)
        else:
            best, chosen = logits.topk(choice.num_chosen, dim=-1)
            weights = torch.softmax(best, dim=-1)
        return logits, weights, chosen
