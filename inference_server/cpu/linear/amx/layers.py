"""Linear layers by the compiled kernels for the tile registers of AMX: weights in bfloat16, int8 or int4.

A row's result has the same bits whatever other rows there are and however many, but for int4 outside batch_invariant,
where few rows and many have a kernel each. Integer kernels take activations as whole numbers of 15 bits and are exact
beyond that; int4 for many rows rounds activations and weights to bfloat16.
"""

import logging
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from inference_server.cpu.linear.integer_weights import GROUP, Int4, Int8
from inference_server.kernels.amx import tile_config as tiles
from inference_server.kernels.jit import arguments
from inference_server.kernels.jit.kernel import Kernel

logger = logging.getLogger(__name__)

_OUTPUTS = 32  # of a strip of weights
_ROWS = 8  # of a block of activations of the integer kernels
_TILE_ROWS = 16
# Beyond it, sums of int8 products might not fit int32, nor a strip the stack.
_WIDEST = 32768
_MOST_FEW = 8  # rows for which int4 has a kernel of its own
_GATED = "-gated"
_DIVISORS = {"bf16": 32, "int8": 64, "int4": GROUP}


def has_kernel(name: str, in_features: int) -> bool:
    """`name`: bf16, int8 or int4."""
    return in_features % _DIVISORS[name] == 0 and in_features <= _WIDEST and _kernel(name) is not None


@cache
def _kernel(name: str) -> Kernel | None:
    """None where the CPU has no tile registers or nothing can be compiled, which is logged once."""
    if not tiles.are_usable():
        return None
    try:
        from inference_server.kernels.jit import object_cache as objects

        return Kernel(objects.entry(f"linear-{name}", partial(_make, name), objects.default_folder()))
    except Exception as error:  # whatever it is, torch can do the work
        logger.warning("no compiled %s linears, torch's instead (slower): %s: %s", name, type(error).__name__, error)
        return None


def _make(name: str) -> Any:
    from inference_server.kernels.amx import intrinsics as amx
    from inference_server.kernels.amx import linear_bf16, linear_int4
    from inference_server.kernels.amx import linear_int4_prefill as linear_int4_many
    from inference_server.kernels.amx import linear_int8 as linear

    if not (amx.HAS_INT8 and amx.HAS_BF16):
        raise RuntimeError("the compiler does not know this CPU's tile registers")
    makers: dict[str, Callable[[], Any]] = {
        "bf16": partial(linear_bf16.make_bf16, linear_bf16.NARROW),
        "bf16-head": partial(linear_bf16.make_bf16, linear_bf16.ROUNDED),
        "bf16-gated": partial(linear_bf16.make_bf16, linear_bf16.GATED_NARROW),
        "int8": partial(linear.make_int8, False),
        "int8-gated": partial(linear.make_int8, True),
        "int4": partial(linear_int4.make_int4, False),
        "int4-gated": partial(linear_int4.make_int4, True),
        "int4-many": partial(linear_int4_many.make_int4_many, False),
        "int4-many-gated": partial(linear_int4_many.make_int4_many, True),
    }
    return makers[name]()


def _needed(name: str) -> Kernel:
    kernel = _kernel(name)
    assert kernel is not None, "asked without has_kernel"
    return kernel


@cache
def _integer_shapes(num_inputs: int) -> Tensor:
    """Totals are the registers 0-3, activations 4-5, weights 6-7."""
    return tiles.shapes([64] * 4 + [num_inputs] * 2 + [64] * 2, [16] * 6 + [num_inputs // 4] * 2)


@cache
def _bf16_shapes(rest: int) -> Tensor:
    """For whole groups of 32 rows, then for `rest` rows, fewer than 32."""
    first, second = max(1, min(rest, _TILE_ROWS)), max(1, rest - _TILE_ROWS)
    rows = ([_TILE_ROWS] * 6, [first, first, second, second, first, second])
    return torch.cat([tiles.shapes([64] * 8, [*each, 16, 16]) for each in rows])


@dataclass(frozen=True, slots=True)
class Packed:
    """A linear as its kernel reads it.

    `kind`: bf16, int8 or int4, and behind it `-head`, `-invariant`, `-gated` for what it is besides. Gated ones are two
    linears of equal shape, gates and ups; of each strip of 32 outputs, 16 are gates and the others their ups.
    """

    kind: str
    shape: tuple[int, int]  # (outputs, inputs) of the weights
    weights: Tensor
    scales: Tensor | None
    bias: Tensor  # float32, with zeros up to a whole strip


class CompiledLinear(nn.Module):
    """Weights lie as the kernel reads them; where they lie, they stay."""

    dtype = torch.float32  # of the activations
    out_dtype = torch.float32

    def __init__(self, packed: Packed) -> None:
        super().__init__()
        self.packed = packed
        num_outputs, self.in_features = packed.shape
        self._num_outputs = num_outputs + -num_outputs % _OUTPUTS  # whole strips
        self.is_gated = packed.kind.endswith(_GATED)
        parts = 2 if self.is_gated else 1
        self.out_features, self.padded_features = num_outputs // parts, self._num_outputs // parts
        tensors = (packed.weights, packed.scales, packed.bias)
        self._addresses = [0 if each is None else each.data_ptr() for each in tensors]
        self.num_bytes = sum(0 if each is None else each.nbytes for each in tensors)

    @abstractmethod
    def plan(self, num_rows: int) -> tuple[Kernel, Tensor]:
        """The kernel, and the shapes of the tiles for it."""

    @abstractmethod
    def memory_bytes(self, num_rows: int) -> int:
        """What `step` asks for."""

    def step(self, x: Tensor, output: Tensor, memory: Tensor) -> tuple[Kernel, bytes]:
        """x (num_rows, in_features) of `dtype`, output (num_rows, padded_features) of `out_dtype`, memory int8."""
        weights, scales, bias = self._addresses
        kernel, shapes = self.plan(x.shape[0])
        addresses = (weights, scales, x.data_ptr(), output.data_ptr(), bias)
        sizes = (x.shape[0], self.in_features, self._num_outputs)
        return kernel, arguments.linear(*addresses, *sizes, memory.data_ptr(), shapes.data_ptr())

    def forward(self, x: Tensor) -> Tensor:
        width, outputs = self.in_features, self.padded_features
        rows = x.reshape(-1, width).contiguous()
        memory = torch.empty(self.memory_bytes(rows.shape[0]), dtype=torch.int8)
        output = torch.empty(rows.shape[0], outputs, dtype=self.out_dtype)
        kernel, words = self.step(rows, output, memory)
        kernel.run(words, self._num_outputs // _OUTPUTS, width * self._num_outputs // 10)
        if outputs != self.out_features:
            output = output[:, : self.out_features].contiguous()
        return output.view(*x.shape[:-1], self.out_features)


class Bf16Linear(CompiledLinear):
    """A strip of weights: for each 32 inputs two tiles of (16 pairs of inputs, 16 outputs, 2).

    A head's output is float32, though rounded to bfloat16.
    """

    dtype = torch.bfloat16

    def __init__(self, packed: Packed) -> None:
        super().__init__(packed)
        self._kernel = _needed(packed.kind)
        self.out_dtype = torch.float32 if packed.kind == "bf16-head" else torch.bfloat16

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None, *, is_head: bool = False, is_gated: bool = False) -> "Bf16Linear":
        """weight (out_features, in_features) bfloat16"""
        strips = _in_strips(weight, is_gated).view(-1, 2, 16, weight.shape[1] // 32, 16, 2)
        weights = strips.permute(0, 3, 1, 4, 2, 5).contiguous()
        return cls(_packed("bf16-head" if is_head else "bf16", weight.shape, weights, None, bias, is_gated))

    def plan(self, num_rows: int) -> tuple[Kernel, Tensor]:
        return self._kernel, _bf16_shapes(num_rows % 32)

    def memory_bytes(self, num_rows: int) -> int:
        return 0


class _IntegerLinear(CompiledLinear):
    def memory_bytes(self, num_rows: int) -> int:
        """The split rows, their units, the sums of their groups."""
        width = self.in_features
        return -(-num_rows // _ROWS) * _ROWS * (2 * width + 4 + width // GROUP * 4)


class Int8Linear(_IntegerLinear):
    """1 byte a weight. A tile of weights is (16 times 4 inputs, 16 outputs, 4 inputs)."""

    def __init__(self, packed: Packed) -> None:
        super().__init__(packed)
        self._kernel = _needed(packed.kind)

    @classmethod
    def of(cls, weight: Int8, bias: Tensor | None, *, is_gated: bool = False) -> "Int8Linear":
        codes = _in_strips(weight.codes, is_gated).view(-1, 2, 16, weight.codes.shape[1] // 64, 16, 4)
        codes = codes.permute(0, 3, 1, 4, 2, 5).contiguous()
        return cls(_packed("int8", weight.codes.shape, codes, _in_strips(weight.scales, is_gated), bias, is_gated))

    def plan(self, num_rows: int) -> tuple[Kernel, Tensor]:
        return self._kernel, _integer_shapes(64)


class Int4Linear(_IntegerLinear):
    """5 bits a weight: 4 of the code, and 16 each of scale and minimum for every 32. A tile is (8, 16, 4)."""

    def __init__(self, packed: Packed) -> None:
        super().__init__(packed)
        gated = _GATED if packed.kind.endswith(_GATED) else ""
        self._few = _needed("int4" + gated)
        self._many = None if "-invariant" in packed.kind else _needed("int4-many" + gated)

    @classmethod
    def of(
        cls, weight: Int4, bias: Tensor | None, *, batch_invariant: bool = False, is_gated: bool = False
    ) -> "Int4Linear":
        groups = weight.codes.shape[1] // GROUP
        halves = _in_strips(weight.codes, is_gated).view(-1, 2, 16, groups, 8, 4).permute(0, 3, 1, 4, 2, 5)
        codes = (halves[:, :, :, :4] | (halves[:, :, :, 4:] << 4)).contiguous()
        factors = torch.stack([_in_strips(each, is_gated) for each in (weight.scales, weight.minima)]).half()
        scales = factors.view(2, -1, _OUTPUTS, groups).permute(1, 3, 0, 2).contiguous()
        kind = "int4-invariant" if batch_invariant else "int4"
        return cls(_packed(kind, weight.codes.shape, codes, scales, bias, is_gated))

    def plan(self, num_rows: int) -> tuple[Kernel, Tensor]:
        if self._many is None or num_rows <= _MOST_FEW:
            return self._few, _integer_shapes(GROUP)
        return self._many, _bf16_shapes(num_rows % 32)


_CLASSES: dict[str, type[CompiledLinear]] = {"bf16": Bf16Linear, "int8": Int8Linear, "int4": Int4Linear}


def of_packed(packed: Packed) -> CompiledLinear:
    """Raises ValueError where this CPU has no kernel for it."""
    name = packed.kind.partition("-")[0]
    if not has_kernel(name, packed.shape[1]):
        raise ValueError(f"this CPU has no kernel for {packed.kind}")
    return _CLASSES[name](packed)


def can_gate(num_outputs: int) -> bool:
    """Whether two linears of so many outputs each can be one gated linear."""
    return num_outputs % (_OUTPUTS // 2) == 0


def _packed(
    kind: str, shape: torch.Size, weights: Tensor, scales: Tensor | None, bias: Tensor | None, is_gated: bool
) -> Packed:
    num_outputs, num_inputs = shape
    bias = _in_strips(torch.zeros(num_outputs) if bias is None else bias.float(), is_gated)
    return Packed(kind + _GATED if is_gated else kind, (num_outputs, num_inputs), weights, scales, bias)


def _in_strips(tensor: Tensor, is_gated: bool) -> Tensor:
    """Rows in the order of the outputs of whole strips."""
    if not is_gated:
        return _padded(tensor)
    order = torch.arange(len(tensor)).view(2, -1, _OUTPUTS // 2).transpose(0, 1).flatten()
    return tensor[order]


def _padded(tensor: Tensor) -> Tensor:
    """With rows of zeros up to a whole strip."""
    missing = -tensor.shape[0] % _OUTPUTS
    return torch.cat([tensor, tensor.new_zeros(missing, *tensor.shape[1:])]) if missing else tensor.contiguous()
