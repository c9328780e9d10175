"""Defines the compared implementations of a product: Tailrace's backend for this CPU, and torch's own operations."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.kernels.shapes import Layer
from inference_server.cpu.linear.backends import choose_backend
from inference_server.cpu.linear.integer_weights import Int4, Int8
from inference_server.cpu.linear.kernel_linear import KernelLinear, LinearKind, WeightFormat
from inference_server.linears.plain import GROUP

FORMATS: tuple[WeightFormat, ...] = ("int4", "int8", "bf16")
# oneDNN orders the weights for an expected number of rows. The order for this number is fast for one row and for many.
_LAYOUT_ROWS = 32

Call = Callable[[], object]


class Product(ABC):
    """A linear layer whose weights, as the product reads them, share no memory with those of other products."""

    num_bytes: int  # bytes of weights and scales that one product reads

    @abstractmethod
    def copy(self) -> "Product":
        """Return an equal product that reads its own copy of the weights and scales."""

    @abstractmethod
    def call(self, rows: int) -> Call:
        """Return a function that computes the product with `rows` rows. Tailrace's kernels allocate no memory in it."""


class TailraceProduct(Product):
    """The layer that Tailrace's backend for this CPU returns."""

    def __init__(self, weight: Tensor | Int8 | Int4, weight_format: WeightFormat) -> None:
        inputs = weight.shape[1] if isinstance(weight, Tensor) else weight.codes.shape[1]
        self.backend = choose_backend(weight_format, inputs)
        self._inputs, self._is_bf16 = inputs, weight_format == "bf16"
        self._kind = LinearKind(weight_format)
        self._layer = self.backend.pack(weight, None, self._kind)
        self.num_bytes = _bytes_of(self._layer)
        self._source = weight

    def copy(self) -> "TailraceProduct":
        product = copy.copy(self)
        if isinstance(self._layer, KernelLinear):
            packed = self._layer.packed
            scales = None if packed.scales is None else packed.scales.clone()
            product._layer = self.backend.from_packed(replace(packed, weights=packed.weights.clone(), scales=scales))
        else:
            product._layer = self.backend.pack(_cloned(self._source), None, self._kind)
        return product

    def call(self, rows: int) -> Call:
        layer = self._layer
        if isinstance(layer, KernelLinear):
            return _kernel_call(layer, torch.randn(rows, self._inputs).to(layer.dtype))
        x = torch.randn(rows, self._inputs, dtype=torch.bfloat16 if self._is_bf16 else torch.float32)
        return lambda: layer(x)


class TorchProduct(Product):
    """torch's operation for this format: _weight_int4pack_mm_for_cpu, _weight_int8pack_mm, or oneDNN's bfloat16.

    Where oneDNN does not support bfloat16 (without AVX-512), `F.linear` is used.
    """

    def __init__(self, weight: Tensor | Int8 | Int4, weight_format: WeightFormat) -> None:
        self._format = weight_format
        self._scales = torch.empty(0)
        self._is_reordered = False
        if isinstance(weight, Int4):
            self._inputs = weight.codes.shape[1]
            self._weight = torch.ops.aten._convert_weight_to_int4pack_for_cpu(weight.codes.int(), 1)
            pairs = torch.stack([weight.scales, weight.minima + 8 * weight.scales], -1)
            self._scales = pairs.transpose(0, 1).contiguous().bfloat16()
        elif isinstance(weight, Int8):
            self._inputs = weight.codes.shape[1]
            self._weight, self._scales = weight.codes.clone(), weight.scales.bfloat16()
        else:
            self._inputs = weight.shape[1]
            self._source = weight
            self._is_reordered = torch.ops.mkldnn._is_mkldnn_bf16_supported()
            reorder = torch.ops.mkldnn._reorder_linear_weight
            self._weight = reorder(weight.clone(), _LAYOUT_ROWS) if self._is_reordered else weight.clone()
        weight_bytes = weight.nbytes if isinstance(weight, Tensor) else self._weight.nbytes
        self.num_bytes = weight_bytes + self._scales.nbytes

    def copy(self) -> "TorchProduct":
        product = copy.copy(self)
        if self._is_reordered:  # oneDNN's layouts cannot be cloned
            product._weight = torch.ops.mkldnn._reorder_linear_weight(self._source.clone(), _LAYOUT_ROWS)
        else:
            product._weight = self._weight.clone()
        product._scales = self._scales.clone()
        return product

    def call(self, rows: int) -> Call:
        x = torch.randn(rows, self._inputs, dtype=torch.bfloat16)
        weight, scales = self._weight, self._scales
        if self._format == "int4":
            return lambda: torch.ops.aten._weight_int4pack_mm_for_cpu(x, weight, GROUP, scales)
        if self._format == "int8":
            return lambda: torch.ops.aten._weight_int8pack_mm(x, weight, scales)
        if not self._is_reordered:
            return lambda: nn.functional.linear(x, weight)
        return lambda: torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")


SUBJECTS: dict[str, Callable[[Tensor | Int8 | Int4, WeightFormat], Product]] = {
    "tailrace": TailraceProduct,
    "torch": TorchProduct,
}


def random_weight(layer: Layer, weight_format: WeightFormat) -> Tensor | Int8 | Int4:
    """Return random weights of the layer's shape, small enough that the outputs are finite."""
    shape = (layer.outputs, layer.inputs)
    if weight_format == "int8":
        return Int8(torch.randint(-127, 128, shape, dtype=torch.int8), torch.full((layer.outputs,), 1e-4))
    if weight_format == "int4":
        groups = (layer.outputs, layer.inputs // GROUP)
        codes = torch.randint(0, 16, shape, dtype=torch.uint8)
        return Int4(codes, torch.full(groups, 2.0**-10), torch.full(groups, -(2.0**-7)))
    weight: Tensor = torch.randn(shape, dtype=torch.bfloat16) / layer.inputs**0.5
    return weight


def _cloned(weight: Tensor | Int8 | Int4) -> Tensor | Int8 | Int4:
    """Return a copy of the weights, because a layer may keep the tensors that are passed to it."""
    if isinstance(weight, Tensor):
        return weight.clone()
    copies = {each.name: getattr(weight, each.name).clone() for each in fields(weight)}
    return replace(weight, **copies)


def _kernel_call(layer: KernelLinear, x: Tensor) -> Call:
    """Return the compiled kernel's call without the allocations of `forward`, as the kernel program makes it."""
    rows, outputs = x.shape[0], layer.packed.bias.numel()
    output = torch.empty(rows, layer.padded_features, dtype=layer.out_dtype)
    workspace = torch.empty(layer.workspace_bytes(rows), dtype=torch.int8)
    kernel, block = layer.call(x, output, workspace)
    items, nanoseconds = outputs // layer.panel_outputs, layer.in_features * outputs // 10
    held: Any = (x, output, workspace)  # kept alive, because the block contains only addresses

    def call() -> object:
        kernel.run(block, items, nanoseconds)
        return held

    return call


def _bytes_of(layer: nn.Module) -> int:
    """Return the bytes of the weights that a product with one row reads."""
    if isinstance(layer, KernelLinear):
        return layer.num_bytes
    few = getattr(layer, "few", layer)  # torch's layer for few rows
    num_bytes = getattr(few, "num_bytes", None)
    return num_bytes if isinstance(num_bytes, int) else sum(each.nbytes for each in [*few.buffers(), *few.parameters()])
