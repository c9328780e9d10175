"""The experts of mixture-of-experts models on a CPU: packed like linear layers, and computed expert by expert.

Every expert consists of two packed layers: gate and up in one, and down in the other. A forward pass sorts its tokens
by expert, so that the weights of each expert in use are read once. The results of a token's experts are added in the
order in which the router chose them, so the sum does not depend on the other tokens.
"""

from collections.abc import Callable
from collections.abc import Sequence as Items
from typing import Any

import torch
from torch import Tensor, nn

from inference_server.cpu.linear.kernel_linear import KernelLinear
from inference_server.kernels import ops
from inference_server.linears.experts import activated, expert_linears, has_silu_gate, remove_weights, weighted_sum

Pack = Callable[..., nn.Module]


class PackedExperts(nn.Module):
    """The experts of one layer, packed for this CPU.

    Attributes:
        gate_up: For each expert, gate and up as one layer. For experts without a gate, the layer before the activation.
        down: For each expert, the layer after the activation.
        has_silu_gate: True if the experts compute silu(gate) * up.
    """

    def __init__(
        self, gate_up: Items[nn.Module], down: Items[nn.Module], stack: Any = None, *, batch_invariant: bool = False
    ) -> None:
        """Store packed layers.

        Args:
            gate_up: See the attribute.
            down: See the attribute.
            stack: transformers' module that computes the gate and the activation; None for silu(gate) * up.
            batch_invariant: A row's result must be bit-identical for any number of rows.
        """
        super().__init__()
        self.gate_up, self.down = nn.ModuleList(gate_up), nn.ModuleList(down)
        self.has_silu_gate = stack is None or has_silu_gate(stack)
        self._pads = batch_invariant and not self.has_kernels
        self._stack = stack

    @property
    def has_kernels(self) -> bool:
        """Return True if compiled kernels multiply all weights."""
        return all(isinstance(linear, KernelLinear) for linear in (*self.gate_up, *self.down))

    @property
    def is_plain(self) -> bool:
        """Return True if kernels compute the experts, silu(gate) * up included, without transformers' module."""
        has_gates = all(getattr(linear, "is_gated", False) for linear in self.gate_up)
        return self.has_kernels and has_gates and not getattr(self._stack, "has_post_expert_norm", False)

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Apply the chosen experts to each token.

        Args:
            hidden_states: (num_tokens, hidden_size).
            top_k_index: (num_tokens, k) int64, the experts of each token.
            top_k_weights: (num_tokens, k), the routing weights of those experts.

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

        torch's products may depend on the number of rows. If the result must not depend on it, rows are padded to the
        number of tokens of the pass.
        """
        count = len(rows)
        if self._pads:
            rows = torch.cat([rows, rows.new_zeros(num_tokens - count, rows.shape[1])])
        product: Tensor = self.gate_up[expert](rows)
        if not getattr(self.gate_up[expert], "is_gated", False):
            product = ops.silu_mul(product) if self.has_silu_gate else activated(self._stack, product)
        down: Tensor = self.down[expert](product)
        if getattr(self._stack, "has_post_expert_norm", False):
            down = self._stack.post_expert_norm(down)
        return down[:count]


def pack_experts(stack: Any, packed: Pack, dtype: torch.dtype, *, batch_invariant: bool) -> PackedExperts:
    """Pack the experts of transformers' module `stack` one after the other, and remove its parameters.

    Args:
        stack: A module that linears.experts.is_stack accepts.
        packed: `pack` with its options bound.
        dtype: The dtype of the activations. The stack's weights may have a narrower one.
        batch_invariant: A row's result must be bit-identical for any number of rows.
    """
    gate_up, downs = [], []
    for expert in range(stack.num_experts):
        first, down = expert_linears(stack, expert, dtype)
        gate_up.append(packed(first, is_gated=has_silu_gate(stack)))
        downs.append(packed([down]))
    remove_weights(stack)
    return PackedExperts(gate_up, downs, stack, batch_invariant=batch_invariant)
