"""Linear layers that run as a compiled kernel: the packed weights and the interface that forward passes use.

This module does not depend on the instruction set. Subclasses (panels.py) define layouts and choose kernels.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from inference_server.kernels.jit import arguments
from inference_server.kernels.jit.kernel import Kernel

WeightFormat = Literal["float32", "bf16", "int8", "int4"]  # float32: any plain weights that are not bfloat16


@dataclass(frozen=True, slots=True)
class LinearKind:
    """The properties of a linear layer that determine its layout and its kernel."""

    weight_format: WeightFormat
    is_head: bool = False  # the output may be float32, with values rounded to the activations' dtype
    is_gated: bool = False  # gate and up of an MLP; the output is silu(gate) * up, half as wide
    is_invariant: bool = False  # a row's result is bit-identical for any number of rows


@dataclass(frozen=True, slots=True)
class PackedWeights:
    """A linear layer's weights in the layout that its kernel reads.

    Outputs are stored in work items of `panel_outputs` outputs each, padded with zeros. In each work item of a gated
    layer, the first half are gate outputs and the second half the matching up outputs.
    """

    layout: str  # layout_name of the backend that packed them
    kind: LinearKind
    shape: tuple[int, int]  # (outputs, inputs) before padding
    weights: Tensor  # bfloat16, int8 or uint8, in the backend's own order
    scales: Tensor | None  # float32, in the backend's own order; None if `weights` contains them
    bias: Tensor  # (padded outputs,) float32


def layout_name(backend_name: str, layout_version: int) -> str:
    """Return the name of a layout of packed weights. A kernel can read only weights in its own layout."""
    return f"{backend_name}{layout_version}"


class KernelLinear(nn.Module):
    """A linear layer that a compiled kernel computes, from (…, in_features) to (…, out_features).

    Kernels read the weights by address, so the tensors of `packed` must not be replaced.
    """

    panel_outputs: ClassVar[int]  # outputs of a work item, the unit of work of one thread
    dtype = torch.float32  # dtype of the activations
    out_dtype = torch.float32

    def __init__(self, packed: PackedWeights) -> None:
        super().__init__()
        self.packed = packed
        num_outputs, self.in_features = packed.shape
        self._num_outputs = num_outputs + -num_outputs % self.panel_outputs
        self.is_gated = packed.kind.is_gated
        parts = 2 if self.is_gated else 1
        self.out_features, self.padded_features = num_outputs // parts, self._num_outputs // parts
        tensors = (packed.weights, packed.scales, packed.bias)
        self._addresses = [0 if each is None else each.data_ptr() for each in tensors]
        self.num_bytes = sum(0 if each is None else each.nbytes for each in tensors)

    @abstractmethod
    def plan(self, num_rows: int) -> Kernel:
        """Return the kernel for `num_rows` rows of activations."""

    @abstractmethod
    def workspace_bytes(self, num_rows: int) -> int:
        """Return the size of the workspace that `call` requires for `num_rows` rows."""

    def call(self, x: Tensor, output: Tensor, workspace: Tensor) -> tuple[Kernel, bytes]:
        """Return the kernel and its argument block.

        Args:
            x: (num_rows, in_features) of `dtype`, contiguous.
            output: (num_rows, padded_features) of `out_dtype`, contiguous.
            workspace: int8, at least `workspace_bytes(num_rows)`.
        """
        weights, scales, bias = self._addresses
        addresses = (weights, scales, x.data_ptr(), output.data_ptr(), bias)
        sizes = (x.shape[0], self.in_features, self._num_outputs)
        return self.plan(x.shape[0]), arguments.linear(*addresses, *sizes, workspace.data_ptr())

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to x, (…, in_features) of `dtype`. Returns (…, out_features) of `out_dtype`."""
        width, outputs = self.in_features, self.padded_features
        rows = x.reshape(-1, width).contiguous()
        workspace = torch.empty(self.workspace_bytes(rows.shape[0]), dtype=torch.int8)
        output = torch.empty(rows.shape[0], outputs, dtype=self.out_dtype)
        kernel, block = self.call(rows, output, workspace)
        kernel.run(block, self._num_outputs // self.panel_outputs, width * self._num_outputs // 10)
        if outputs != self.out_features:
            output = output[:, : self.out_features].contiguous()
        return output.view(*x.shape[:-1], self.out_features)
