"""Linear layers whose weights are not those of a torch.nn.Linear: one expert of a stack, and GPT-2's Conv1D."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

GROUP = 32  # inputs that share a scale and a minimum in int4; int4 layers have a multiple of this number of inputs


@dataclass(frozen=True, slots=True)
class PlainLinear:
    """A linear layer's weights, with the attributes of torch's linear layer that a packing function reads.

    Attributes:
        weight: (out_features, in_features), of any float dtype and any strides.
        bias: (out_features,), or None.
    """

    weight: Tensor
    bias: Tensor | None = None

    @property
    def in_features(self) -> int:
        """Return the number of inputs."""
        return self.weight.shape[1]

    @property
    def out_features(self) -> int:
        """Return the number of outputs."""
        return self.weight.shape[0]


def is_int8(module: Any) -> bool:
    """Return True for bitsandbytes' int8 layer. Compares the class's name, so that bitsandbytes is not imported."""
    return type(module).__name__ == "Linear8bitLt"


def is_conv1d(module: Any) -> bool:
    """Return True for transformers' Conv1D, a linear layer whose weight is (in_features, out_features), as in GPT-2."""
    return type(module).__name__ == "Conv1D" and isinstance(getattr(module, "nf", None), int)


def is_linear(module: Any) -> bool:
    """Return True for torch's linear layer, transformers' Conv1D and bitsandbytes' int8 layer, but not for subclasses."""
    return type(module) is nn.Linear or is_int8(module) or is_conv1d(module)


def as_linear(module: Any) -> Any:
    """Return a module with a weight (out_features, in_features): Conv1D transposed, other linear layers unchanged."""
    if not is_conv1d(module):
        return module
    return PlainLinear(module.weight.detach().t(), module.bias.detach())
