"""The linear backend of torch's own operations, for layers and CPUs without a compiled kernel."""

from torch import Tensor, nn

from inference_server.cpu.linear.kernel_linear import KernelLinear, LinearKind, PackedWeights, WeightFormat
from inference_server.cpu.linear.weight_types import Weights


class TorchBackend:
    """Backend whose layers are torch's. Integer weights are multiplied in float32.

    The packed cache does not store these layers.
    """

    name = "torch"
    layout_version = 1

    def obstacle(self) -> str | None:
        """Return None: torch runs on every CPU."""
        return None

    def supports(self, weight_format: WeightFormat, in_features: int) -> bool:
        """Return True: torch multiplies weights of every shape."""
        return True

    def supports_gate(self, num_outputs: int) -> bool:
        """Return False: the caller multiplies silu(gate) and up itself."""
        return False

    def pack(self, weight: Weights, bias: Tensor | None, kind: LinearKind) -> nn.Module:
        """Return torch's layer with these weights. Plain weights are not copied."""
        weight = weight if isinstance(weight, Tensor) else weight.dequantize()
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
        linear.weight = nn.Parameter(weight, requires_grad=False)
        if bias is not None:
            linear.bias = nn.Parameter(bias.to(weight.dtype), requires_grad=False)
        return linear

    def from_packed(self, packed: PackedWeights) -> KernelLinear:
        """Raise ValueError: `pack` returns no packed weights."""
        raise ValueError("torch's linear layers are not kept packed")
