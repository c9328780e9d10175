"""Replaces a model's linear layers with layers packed for this CPU.

`pack` stacks linear layers that share their input into one module. `pack_linears` replaces the others of a model. A
module maps (…, in_features) to (…, out_features), as nn.Linear does. A backend (backends.py) chooses the module's class.
"""

from collections.abc import Sequence as Items
from typing import Any

import torch
from torch import Tensor, nn

from inference_server.cpu.linear.backends import BACKENDS, LinearBackend, choose_backend
from inference_server.cpu.linear.integer_weights import int4_weights, int8_weights
from inference_server.cpu.linear.kernel_linear import LinearKind, WeightFormat
from inference_server.cpu.linear.stored_linear import StoredLinear, stacked_weights
from inference_server.cpu.linear.weight_types import Weights
from inference_server.linears.plain import GROUP, as_linear, is_int8, is_linear
from inference_server.precision import Precision

# Modules of transformers, by the names of their classes, that access the weights of their linear layers directly. These
# layers cannot be replaced.
_READING_WEIGHTS = {"HunYuanMoEV1Gate"}


def pack(
    linears: list[Any],
    precision: Precision,
    *,
    batch_invariant: bool = False,
    is_head: bool = False,
    is_gated: bool = False,
    backends: Items[LinearBackend] = BACKENDS,
) -> nn.Module:
    """Return one module for linear layers that share their input. Its output is the concatenation of their outputs.

    Args:
        linears: torch's linear layers, PlainLinear, bitsandbytes' Linear8bitLt, which keeps its own integers for any
            precision, or StoredLinear, whose weights this function reads from a file. A single layer may already be a
            stack of several.
        precision: The precision of these layers (the output head of an int4 model is packed as int8).
        batch_invariant: A row's result must be bit-identical for any number of rows.
        is_head: The output may be float32, with values rounded to the activations' dtype.
        is_gated: The outputs are those of an MLP's gate, then of its up layer. The module may then return
            silu(gate) * up; if it does, its attribute `is_gated` is True.
        backends: The candidates, of which the first that supports the layer is used.
    """
    weight_format, weight = _stacked_weights(linears, precision)
    backend = choose_backend(weight_format, linears[0].in_features, backends)
    has_gate = is_gated and backend.supports_gate(sum(linear.out_features for linear in linears) // 2)
    kind = LinearKind(weight_format, is_head=is_head, is_gated=has_gate, is_invariant=batch_invariant)
    layer = backend.pack(weight, _stacked_bias(linears), kind)
    return linears[0].keep(layer, linears) if isinstance(linears[0], StoredLinear) else layer


def pack_linears(
    model: Any,
    precision: Precision,
    *,
    batch_invariant: bool = False,
    backends: Items[LinearBackend] = BACKENDS,
) -> None:
    """Replace every linear layer of a loaded model in place. An int4 model's head has 8 bits, as in GGUF files.

    The parameters are the same as for `pack`.
    """
    head = model.get_output_embeddings()
    for module in list(model.modules()):
        if type(module).__name__ in _READING_WEIGHTS:
            continue
        for name, child in list(module.named_children()):
            if is_packable(child):
                used = "bitsandbytes-int8" if child is head and precision == "int4" else precision
                options = {"batch_invariant": batch_invariant, "is_head": child is head}
                setattr(module, name, pack([as_linear(child)], used, backends=backends, **options))


def is_packable(module: nn.Module) -> bool:
    """Return True for a layer that `pack` accepts: those of `is_linear`, and StoredLinear."""
    return is_linear(module) or isinstance(module, StoredLinear)


def _stacked_weights(linears: list[Any], precision: Precision) -> tuple[WeightFormat, Weights]:
    """Return the weights of all layers, (out_features of all, in_features), and their format."""
    if isinstance(linears[0], StoredLinear):
        return stacked_weights(linears, precision)
    if precision == "bitsandbytes-int8" or any(is_int8(linear) for linear in linears):
        return "int8", int8_weights(linears)
    if precision == "int4" and linears[0].in_features % GROUP == 0:
        return "int4", int4_weights(linears)
    weights = [linear.weight.detach() for linear in linears]
    weight = weights[0] if len(weights) == 1 else torch.cat(weights)
    return "bf16" if weight.dtype is torch.bfloat16 else "float32", weight


def _stacked_bias(linears: list[Any]) -> Tensor | None:
    """Return the biases of all layers, with zeros for a layer without one; None if no layer has a bias."""
    if all(linear.bias is None for linear in linears):
        return None
    dtype = next(linear.bias.dtype for linear in linears if linear.bias is not None)
    zeros = [torch.zeros(linear.out_features, dtype=dtype) for linear in linears]
    return torch.cat(
        [zero if each.bias is None else each.bias.detach() for each, zero in zip(linears, zeros, strict=True)]
    )
