"""The experts of mixture-of-experts models as transformers stores them: stacked parameters of three dimensions.

transformers describes a stack by attributes of its module (its experts interface): whether the experts have a gate and
biases, whether the weights are transposed, and whether gate and up outputs are concatenated or alternate.
"""

from typing import Any

import torch
from torch import Tensor

from inference_server.linears.plain import PlainLinear

SILUS = {"SiLU", "SiLUActivation"}  # torch's class and transformers' class

# transformers' own gate, act(gate) * up, by the name of its function.
_DEFAULT_GATE = "_default_apply_gate"
_DESCRIPTION = ("has_gate", "has_bias", "is_transposed", "is_concatenated", "num_experts")
_WEIGHTS = ("gate_up_proj", "up_proj", "down_proj")


def is_stack(module: Any) -> bool:
    """Return True for a module with stacked experts in the form that transformers' experts interface describes."""
    down = getattr(module, "down_proj", None)
    described = all(hasattr(module, name) for name in _DESCRIPTION)
    return described and isinstance(down, Tensor) and down.dim() == 3


def switch_off_router_logits(model: Any) -> None:
    """Prevent a transformers model from returning its routers' logits, which only training needs."""
    for config in (model.config, model.config.get_text_config()):
        if getattr(config, "output_router_logits", False):
            config.output_router_logits = False


def weight_names(stack: Any) -> list[str]:
    """Return the names of the parameters with the experts' weights, each (num_experts, …, …)."""
    return [name for name in _WEIGHTS if getattr(stack, name, None) is not None]


def expert_linears(stack: Any, expert: int, dtype: torch.dtype | None = None) -> tuple[list[PlainLinear], PlainLinear]:
    """Return the linear layers of one expert, as views of the stacked parameters if possible.

    Args:
        stack: A module that `is_stack` accepts.
        expert: The expert's number.
        dtype: The dtype of the weights; None for that of the parameters.

    Returns:
        First a list: gate and up as two layers, or the single layer before the activation if there is no gate. Then the
        layer after the activation (down).
    """
    whole = _linear(stack, "gate_up_proj" if stack.has_gate else "up_proj", expert, dtype)
    down = _linear(stack, "down_proj", expert, dtype)
    if not stack.has_gate:
        return [whole], down
    if stack.is_concatenated:
        half = whole.out_features // 2
        parts = [slice(None, half), slice(half, None)]
    else:
        parts = [slice(None, None, 2), slice(1, None, 2)]
    biases = [None if whole.bias is None else whole.bias[part] for part in parts]
    return [PlainLinear(whole.weight[part], bias) for part, bias in zip(parts, biases, strict=True)], down


def _linear(stack: Any, name: str, expert: int, dtype: torch.dtype | None) -> PlainLinear:
    weight = getattr(stack, name).detach()[expert].to(dtype)
    bias = getattr(stack, f"{name}_bias").detach()[expert].to(dtype) if stack.has_bias else None
    return PlainLinear(weight.t() if stack.is_transposed else weight, bias)


def remove_weights(stack: Any) -> None:
    """Remove the parameters of a stack, which keeps its gate and its activation."""
    for name in _WEIGHTS:
        for parameter in (name, f"{name}_bias"):
            if hasattr(stack, parameter):
                setattr(stack, parameter, None)


def has_silu_gate(stack: Any) -> bool:
    """Return True if the experts compute silu(gate) * up."""
    gate = getattr(stack._apply_gate, "__name__", "")
    return bool(stack.has_gate) and gate == _DEFAULT_GATE and type(stack.act_fn).__name__ in SILUS


def activated(stack: Any, product: Tensor) -> Tensor:
    """Return the inputs of the layer after the activation (down), (num_rows, intermediate_size).

    Args:
        stack: A stack, with or without its parameters.
        product: The outputs of the layers that `expert_linears` returns first: (num_rows, 2 * intermediate_size), gate
            outputs first, or (num_rows, intermediate_size) without a gate.
    """
    result: Tensor
    if not stack.has_gate:
        result = stack.act_fn(product)
        return result
    if not stack.is_concatenated:  # the module's own gate expects gate and up in the checkpoint's order
        product = torch.stack(product.chunk(2, dim=-1), dim=-1).flatten(-2)
    result = stack._apply_gate(product)
    return result


def weighted_sum(results: Tensor, weights: Tensor) -> Tensor:
    """Return the sums over k of results (num_tokens, k, hidden_size) times weights (num_tokens, k).

    The products are added one by one in float32, so that the order of additions does not depend on the shape.
    """
    factors = weights.float()
    total = results[:, 0].float() * factors[:, 0, None]
    for index in range(1, results.shape[1]):
        total += results[:, index].float() * factors[:, index, None]
    return total.to(results.dtype)
