"""Linear layers for a GPU: with weights in the activations' dtype, or with int8 weights, such as bitsandbytes'."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inference_server.gpu import ops
from inference_server.gpu.triton_support import has_triton
from inference_server.linears.plain import is_int8


class Linear16(nn.Module):
    """A linear layer with weights in the activations' dtype.

    Attributes:
        in_features: The number of inputs.
        out_features: The number of outputs.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        """Use these tensors without copying them.

        Args:
            weight: (out_features, in_features).
            bias: (out_features,), or None.
        """
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs, (…, out_features), of inputs `x` (…, in_features)."""
        return F.linear(x, self.weight, self.bias)  # type: ignore[arg-type]


class Int8Linear(nn.Module):
    """A linear layer with int8 weights and one scale for each output. Activations are not quantised.

    Attributes:
        in_features: The number of inputs.
        out_features: The number of outputs.
    """

    def __init__(self, codes: Tensor, scales: Tensor, bias: Tensor | None) -> None:
        """Use these tensors without copying them.

        Args:
            codes: (out_features, in_features) int8, contiguous.
            scales: (out_features,) float32; weight = codes * scales[:, None].
            bias: (out_features,), or None.
        """
        super().__init__()
        self.out_features, self.in_features = codes.shape
        self.register_buffer("codes", codes)
        self.register_buffer("scales", scales)
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs, (…, out_features), of inputs `x` (…, in_features)."""
        rows = x.reshape(-1, self.in_features)
        output = ops.int8_linear(rows, self.codes, self.scales, self.bias)  # type: ignore[arg-type]
        return output.view(*x.shape[:-1], self.out_features)


def has_outlier_threshold(model: nn.Module) -> bool:
    """Return True if any layer separates outliers (TAILRACE_INT8_THRESHOLD > 0), which only bitsandbytes can do."""
    modules: Iterator[Any] = model.modules()
    return any(is_int8(module) and module.state.threshold > 0 for module in modules)


def stacked(linears: list[Any]) -> Linear16 | Int8Linear:
    """Return one layer with the outputs of all `linears`, concatenated.

    Args:
        linears: torch's linear layers of one dtype, or int8 layers of bitsandbytes. All have the same inputs.
    """
    if is_int8(linears[0]):
        pairs = [_codes_and_scales(linear) for linear in linears]
        codes, scales = (_joined(list(parts)) for parts in zip(*pairs, strict=True))
        return Int8Linear(codes.contiguous(), scales, _bias(linears))
    return Linear16(_joined([linear.weight.detach() for linear in linears]), _bias(linears))


def replace_int8(model: nn.Module) -> int:
    """Replace the int8 layers of a model in place, without copying their integers.

    Does nothing if a layer separates outliers, or if Triton cannot run on the model's GPU. Returns the number of replaced
    layers.
    """
    if has_outlier_threshold(model):
        return 0
    count = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if is_int8(child) and can_multiply_int8(child):
                setattr(parent, name, stacked([child]))
                count += 1
    return count


def can_multiply_int8(linear: Any) -> bool:
    """Return True if Int8Linear can replace this layer: it is on a CPU, or Triton can run on its GPU."""
    codes: Tensor = _codes_and_maxima(linear)[0]
    return codes.device.type != "cuda" or has_triton()


def _codes_and_maxima(linear: Any) -> tuple[Tensor, Tensor]:
    """Return integers and row maxima of an int8 layer. Before its first call, they are attributes of its weight."""
    state, weight = linear.state, linear.weight
    return (
        weight.CB if state.CB is None else state.CB,
        weight.SCB if state.SCB is None else state.SCB,
    )


def _codes_and_scales(linear: Any) -> tuple[Tensor, Tensor]:
    codes, maxima = _codes_and_maxima(linear)
    return codes.detach(), maxima.detach().float().reshape(-1) / 127


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _bias(linears: list[Any]) -> Tensor | None:
    """Return the concatenated biases, with zeros for layers without bias, or None if no layer has one."""
    given = next((linear.bias.detach() for linear in linears if linear.bias is not None), None)
    if given is None:
        return None
    return _joined(
        [
            given.new_zeros(linear.out_features) if linear.bias is None else linear.bias.detach().to(given.dtype)
            for linear in linears
        ]
    )
