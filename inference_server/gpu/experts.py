"""The experts of mixture-of-experts models on a GPU, in int8 or in 16 bits.

A decode pass is recorded as a CUDA graph, so the host cannot read which experts its tokens use. So every expert
computes all tokens, and routing weights of 0 cancel the results of experts that were not chosen. With more than
MAX_INT8_ROWS tokens, as in most prompts, the host reads the number of tokens of each expert. Each expert then computes
only its own tokens.
"""

from typing import Any

import torch
from torch import Tensor, nn

from inference_server.gpu.linear import Int8Linear, Linear16
from inference_server.gpu.ops import MAX_INT8_ROWS
from inference_server.linears.experts import (
    activated,
    expert_linears,
    is_stack,
    remove_weights,
    weighted_sum,
)
from inference_server.linears.plain import PlainLinear


class GpuExperts(nn.Module):
    """The experts of one layer as linear layers of gpu/linear.py."""

    def __init__(self, stack: Any, *, is_int8: bool) -> None:
        """Take the weights of transformers' module `stack`, expert by expert, and remove its parameters.

        Args:
            stack: A module that linears.experts.is_stack accepts.
            is_int8: Round the weights to int8, with one scale for each output.
        """
        super().__init__()
        self.gate_up, self.down = nn.ModuleList(), nn.ModuleList()
        for expert in range(stack.num_experts):
            first, down = expert_linears(stack, expert)
            self.gate_up.append(_layer(first, is_int8))
            self.down.append(_layer([down], is_int8))
        self._stack = stack
        remove_weights(stack)

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Apply the chosen experts to each token.

        Args:
            hidden_states: (num_tokens, hidden_size).
            top_k_index: (num_tokens, k) int64, the experts of each token.
            top_k_weights: (num_tokens, k), the routing weights of those experts.

        Returns:
            (num_tokens, hidden_size), the sums of the experts' weighted results.
        """
        if len(hidden_states) > MAX_INT8_ROWS:
            return self._by_expert(hidden_states, top_k_index, top_k_weights)
        total = torch.zeros_like(hidden_states, dtype=torch.float32)
        for expert in range(len(self.down)):
            factors = torch.where(top_k_index == expert, top_k_weights.float(), 0.0).sum(dim=-1, keepdim=True)
            total += self._expert(expert, hidden_states).float() * factors
        return total.to(hidden_states.dtype)

    def _by_expert(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Compute many tokens, sorted by expert. The host waits for the number of tokens of each expert."""
        num_tokens, num_chosen = top_k_index.shape
        sorted_experts, order = top_k_index.flatten().sort(stable=True)
        bounds = torch.arange(len(self.down) + 1, device=order.device)
        starts = torch.searchsorted(sorted_experts, bounds).tolist()
        rows = hidden_states[order // num_chosen]
        results = torch.empty_like(rows)
        for expert, (start, end) in enumerate(zip(starts, starts[1:], strict=False)):
            if start < end:
                results[start:end] = self._expert(expert, rows[start:end])
        by_token = torch.empty_like(results)
        by_token[order] = results
        return weighted_sum(by_token.view(num_tokens, num_chosen, -1), top_k_weights)

    def _expert(self, expert: int, rows: Tensor) -> Tensor:
        product = activated(self._stack, self.gate_up[expert](rows))
        down: Tensor = self.down[expert](product.to(rows.dtype))
        return self._stack.post_expert_norm(down) if self._stack.has_post_expert_norm else down


def replace_experts(model: nn.Module, *, is_int8: bool) -> bool:
    """Replace the stacked experts of a model in place, layer by layer, if GpuExperts is needed.

    transformers' own grouped product computes bfloat16 and can be recorded as a CUDA graph. With other dtypes, the
    product makes the host wait for the device.

    Args:
        model: A transformers model on a GPU.
        is_int8: Round the weights to int8.

    Returns:
        True if the model has experts in int8.
    """
    found = False
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if is_stack(child) and (is_int8 or child.down_proj.dtype is not torch.bfloat16):
                setattr(parent, name, GpuExperts(child, is_int8=is_int8))
                found = True
    return found and is_int8


def _layer(parts: list[PlainLinear], is_int8: bool) -> Linear16 | Int8Linear:
    """Return one layer with the outputs of all parts, concatenated."""
    biases = [part.bias for part in parts if part.bias is not None]
    bias = torch.cat(biases) if biases else None
    if not is_int8:
        return Linear16(parts[0].weight if len(parts) == 1 else torch.cat([part.weight for part in parts]), bias)
    wide = torch.cat([part.weight for part in parts]).float()  # a contiguous copy, even of a transposed weight
    scales = (wide.abs().amax(dim=1) / 127).clamp_min(torch.finfo(torch.float32).tiny)
    return Int8Linear((wide / scales[:, None]).round_().to(torch.int8), scales, bias)
