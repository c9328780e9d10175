"""Chooses the implementation of a linear layer on this CPU.

A new instruction set needs one file in kernels/isa, one entry in kernels/isa/table.py, and its name in
kernels/isa/choice.py. A new layout of weights needs one implementation of LinearBackend and one entry in BACKENDS.
"""

from collections.abc import Sequence as Items
from typing import Protocol

from torch import Tensor, nn

from inference_server.cpu.linear.kernel_linear import (
    KernelLinear,
    LinearKind,
    PackedWeights,
    WeightFormat,
    layout_name,
)
from inference_server.cpu.linear.panels import PanelBackend
from inference_server.cpu.linear.torch_backend import TorchBackend
from inference_server.cpu.linear.weight_types import Weights


class LinearBackend(Protocol):
    """A way to store and multiply the weights of linear layers."""

    @property
    def name(self) -> str:
        """The backend's name, without "." and "-": part of the packed cache's folder name."""

    @property
    def layout_version(self) -> int:
        """The version of the weights' order in memory, incremented when it changes."""

    def obstacle(self) -> str | None:
        """Return the reason why this backend cannot run on this CPU, as a clause; None if it can."""

    def supports(self, weight_format: WeightFormat, in_features: int) -> bool:
        """Check whether this backend multiplies weights of this format and width on this CPU."""

    def supports_gate(self, num_outputs: int) -> bool:
        """Check whether gate and up projections of `num_outputs` outputs each can be fused into one gated layer."""

    def pack(self, weight: Weights, bias: Tensor | None, kind: LinearKind) -> nn.Module:
        """Return a layer with these weights, in this backend's layout.

        Args:
            weight: (out_features, in_features) in the format that `kind` specifies and `supports` accepts.
            bias: (out_features,), or None.
            kind: `is_gated` only if `supports_gate`. A layer that is not a KernelLinear may ignore `is_head`.
        """

    def from_packed(self, packed: PackedWeights) -> KernelLinear:
        """Return the layer for `packed` weights, which are in this backend's layout."""


# The first one that supports a layer computes it. The last one supports every layer.
BACKENDS: tuple[LinearBackend, ...] = (PanelBackend(), TorchBackend())


def choose_backend(
    weight_format: WeightFormat, in_features: int, backends: Items[LinearBackend] = BACKENDS
) -> LinearBackend:
    """Return the first backend that supports weights of this format and width."""
    return next(backend for backend in backends if backend.supports(weight_format, in_features))


def preferred_layout(backends: Items[LinearBackend] = BACKENDS) -> str:
    """Return the name of the layout of the first backend that can run on this CPU, for example "torch1"."""
    return next(_layout(backend) for backend in backends if backend.obstacle() is None)


def from_packed(packed: PackedWeights, backends: Items[LinearBackend] = BACKENDS) -> KernelLinear:
    """Return the layer for weights that `LinearBackend.pack` stored in this or an earlier process.

    Raises:
        ValueError: No backend on this CPU has the weights' layout.
    """
    for backend in backends:
        fits = _layout(backend) == packed.layout
        if fits and backend.supports(packed.kind.weight_format, packed.shape[1]):
            return backend.from_packed(packed)
    raise ValueError(f"no kernel on this CPU reads the packed weights' layout {packed.layout}")


def _layout(backend: LinearBackend) -> str:
    return layout_name(backend.name, backend.layout_version)
