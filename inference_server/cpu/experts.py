"""The experts of mixture-of-experts models on a CPU: packed like linear layers, and computed expert by expert.

Every expert is two packed layers: gate and up in one, and down. A pass sorts its tokens by expert, so that the weights of
each expert in use are read once. The results of a token are added in the order of its router's choice. So they do not
depend on the other tokens.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from inference_server.cpu.linear.kernel_linear import KernelLinear
from inference_server.kernels import ops
from inference_server.linears.experts import activated, expert_linears, has_silu_gate, remove_weights, weighted_sum

Pack = Callable[..., nn.Module]


class PackedExperts(nn.Module):
    """The experts of one layer, packed for this CPU."""

    def __init__(self, stack: Any, packed: Pack, dtype: torch.dtype, *, batch_invariant: bool) -> None:
        """Pack the experts of transformers' module `stack` one after the other, and remove its parameters.

        Args:
            stack: A module that linears.experts.is_stack accepts.
            packed: `pack` with its options bound.
            dtype: The dtype of the activations. The stack may have a narrower one.
            batch_invariant: A row's result must be bit-identical for any number of rows.
        """
        super().__init__()
        self.has_silu_gate = has_silu_gate(stack)
        self.gate_up, self.down = nn.ModuleList(), nn.ModuleList()
        for expert in range(stack.num_experts):
            first, down = expert_linears(stack, expert, dtype)
            self.gate_up.append(packed(first, is_gated=self.has_silu_gate))
            self.down.append(packed([down]))
        has_kernels = all(isinstance(linear, KernelLinear) for linear in (*self.gate_up, *self.down))
        self._pads = batch_invariant and not has_kernels
        self._stack = stack
        remove_weights(stack)

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Apply the chosen experts to each token.

        Args:
            hidden_states: (num_tokens, hidden_size).
            top_k_index: (num_tokens, k) int64, the experts of each token.
            top_k_weights: (num_tokens, k), the factors on their results.

        Returns:
            (num_tokens, hidden_size), the sums of the experts' weighted results.
        """
        num_tokens, num_chosen = top_k_index.shape
        chosen = top_k_index.flatten()
        order = chosen.argsort(stable=True)
        rows = hidden_states[order // num_chosen]
        results = torch.empty_like(rows)
        start = 0
        for expert, count in enumerate(torch.bincount(chosen).tolist()):
            if count:
                end = start + count
                results[start:end] = self._expert(expert, rows[start:end], num_tokens)
                start = end
        by_token = torch.empty_like(results)
        by_token[order] = results
        return weighted_sum(by_token.view(num_tokens, num_chosen, -1), top_k_weights)

    def _expert(self, expert: int, rows: Tensor, num_tokens: int) -> Tensor:
        """Apply one expert to its rows.

        torch's products may depend on the number of rows. If the result must not, they compute as many rows as the pass
        has tokens.
        """
        count = len(rows)
        if self._pads:
            rows = torch.cat([rows, rows.new_zeros(num_tokens - count, rows.shape[1])])
        product: Tensor = self.gate_up[expert](rows)
        if not getattr(self.gate_up[expert], "is_gated", False):
            product = ops.silu_mul(product) if self.has_silu_gate else activated(self._stack, product)
        down: Tensor = self.down[expert](product)
        if self._stack.has_post_expert_norm:
            down = self._stack.post_expert_norm(down)
        return down[:count]
