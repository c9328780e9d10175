"""LoRA adapters in the layout of the CPU kernel `lora`, and the kernel's calls in a kernel program.

The base model's weights do not change. Adapters are numbered from 1: a row with adapter k uses entry k - 1 of a table.
"""

from collections.abc import Iterator, Mapping
from collections.abc import Sequence as Items
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from inference_server.cpu.decoder_weights import DecoderWeights, LayerWeights
from inference_server.cpu.large_pages import Arena, aligned_bytes
from inference_server.cpu.linear.backends import from_packed
from inference_server.cpu.linear.kernel_linear import KernelLinear
from inference_server.errors import UnsupportedModel
from inference_server.kernels.jit import arguments
from inference_server.kernels.jit.arguments import LORA_ROWS
from inference_server.kernels.jit.kernel import kernel
from inference_server.kernels.jit.program import KernelCall
from inference_server.kernels.linear.workspace import LORA_RANKS
from inference_server.lora.adapter import Adapter, Pair, fitted

_PANEL = 16  # outputs of a panel
_MODULES = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "output": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}


@dataclass(frozen=True, slots=True)
class Site:
    """The adapters of one packed linear layer. The layer's parts are the checkpoint's layers that it stacks.

    Attributes:
        table: (adapters, parts, 4) int64, see kernels/linear/lora.py.
        parts: First panel and number of panels of each part, (parts, 2) int64.
        matrices: The owners of the memory that `table` points to.
        max_rank: The largest rank, padded to a multiple of LORA_RANKS.
    """

    table: Tensor
    parts: Tensor
    matrices: list[Tensor]
    max_rank: int


class CpuAdapters:
    """The adapters of one model that runs as kernel programs.

    Attributes:
        scratch_width: Number of float32 values of scratch memory that a row needs.
        gated_width: Largest number of outputs of gate and up together, of the layers where an adapter adapts gate or
            up; 0 if there are none.
    """

    def __init__(self, decoder: DecoderWeights, adapters: Items[Adapter]) -> None:
        """Convert the adapters' matrices to the layout of the kernel.

        Raises:
            UnsupportedModel: An adapter does not fit the model.
        """
        shapes = _shapes(decoder)
        fitting = [fitted(adapter, shapes) for adapter in adapters]
        # In every step, each sequence may read the matrices of a different adapter. Large pages make these reads faster.
        arena = Arena(sum(_num_bytes(pair) for pairs in fitting for pair in pairs.values()))
        if odd := next((name for name, (outputs, _) in shapes.items() if outputs % _PANEL), None):
            raise UnsupportedModel(f"adapters need layers with a multiple of {_PANEL} outputs, unlike {odd}")
        self._is_bf16 = decoder.dtype is torch.bfloat16
        self._sites: list[dict[str, Site]] = [{} for _ in decoder.layers]
        self._ungated: dict[int, KernelLinear] = {}
        for index, layer in enumerate(decoder.layers):
            for place, modules in _MODULES.items():
                names = [f"model.layers.{index}.{module}" for module in modules]
                if names[0] in shapes and any(name in pairs for name in names for pairs in fitting):
                    outputs = [shapes[name][0] for name in names]
                    self._sites[index][place] = site(
                        [[pairs.get(name) for name in names] for pairs in fitting], outputs, arena
                    )
            if "gate_up" in self._sites[index]:
                assert layer.gate_up is not None
                self._ungated[index] = without_gate(layer.gate_up)
        all_sites = [each for sites in self._sites for each in sites.values()]
        self.scratch_width = max((len(each.parts) * each.max_rank for each in all_sites), default=LORA_RANKS)
        self.gated_width = max((each.out_features for each in self._ungated.values()), default=0)

    def ungated(self, layer: int) -> KernelLinear | None:
        """Return the linear layer of gate and up without silu(gate) * up, or None if no adapter adapts them.

        Its outputs alternate: 16 of gate, then the matching 16 of up. It shares the weights of the gated layer.
        `layer`: index of the decoder's layer.
        """
        return self._ungated.get(layer)

    def call(
        self, layer: int, place: str, x: Tensor, out: Tensor, rows: Tensor, scratch: Tensor, gated: Tensor | None = None
    ) -> Iterator[KernelCall]:
        """Yield the call that adds the adapters to the result of a linear layer, if any adapter adapts it.

        Args:
            layer: Index of the layer of the decoder.
            place: The linear layer: qkv, output, gate_up or down.
            x: The linear layer's input, (rows, inputs).
            out: The linear layer's result, (rows, outputs), to which the adapters are added.
            rows: The adapter of each row, from 1; 0 for none. (rows,) int32.
            scratch: (rows, scratch_width) float32.
            gated: Receives silu(gate) * up, (rows, outputs / 2). Only for gate_up.
        """
        adapted = self._sites[layer].get(place)
        if adapted is None:
            return
        found = kernel("lora" if gated is None else "lora-gated", self._is_bf16)
        assert found is not None
        block = arguments.lora(x, out, rows, adapted.table, adapted.parts, scratch, gated)
        yield KernelCall(found, block, LORA_ROWS)


def _shapes(decoder: DecoderWeights) -> Mapping[str, tuple[int, int]]:
    """Return outputs and inputs of every linear layer that can be adapted, by its name in transformers' model."""
    shapes: dict[str, tuple[int, int]] = {}
    for index, layer in enumerate(decoder.layers):
        for place, sizes in _part_shapes(decoder, layer).items():
            names = (f"model.layers.{index}.{module}" for module in _MODULES[place])
            shapes.update(zip(names, sizes, strict=True))
    return shapes


def _part_shapes(decoder: DecoderWeights, layer: LayerWeights) -> dict[str, list[tuple[int, int]]]:
    heads, kv_heads, width = decoder.num_heads, decoder.num_kv_heads, decoder.head_dim
    shapes = {
        "qkv": [(count * width, layer.qkv.in_features) for count in (heads, kv_heads, kv_heads)],
        "output": [(layer.output.out_features, layer.output.in_features)],
    }
    if layer.gate_up is not None and layer.down is not None:  # adapters of experts are not supported
        shapes["gate_up"] = [(layer.gate_up.out_features, layer.gate_up.in_features)] * 2
        shapes["down"] = [(layer.down.out_features, layer.down.in_features)]
    return shapes


def site(pairs: list[list[Pair | None]], outputs: list[int], arena: Arena | None = None) -> Site:
    """Return the adapters of a linear layer.

    Args:
        pairs: The matrices of each adapter, for each part of the layer; None where the adapter does not adapt the part.
        outputs: Outputs of each part.
        arena: The memory for the converted matrices; None to allocate memory for each.
    """
    matrices: list[Tensor] = []
    records = []
    for pair in (pair for parts in pairs for pair in parts):
        if pair is None:
            records.append([0, 0, 0, 0])
            continue
        down, down_factor = _halves(_down_panels(pair.down))
        up, up_factor = _halves(_up_panels(pair.up))
        if arena is not None:
            down, up = (arena.tensor(each.dtype, tuple(each.shape)).copy_(each) for each in (down, up))
        matrices += [down, up]
        rank = pair.rank + -pair.rank % LORA_RANKS
        factor = torch.tensor([down_factor * up_factor, 0.0]).view(torch.int64)
        records.append([down.data_ptr(), up.data_ptr(), rank, int(factor)])
    counts = torch.tensor(outputs) // _PANEL
    parts = torch.stack([counts.cumsum(0) - counts, counts], dim=1)
    table = torch.tensor(records, dtype=torch.int64).view(len(pairs), len(outputs), 4)
    return Site(table, parts, matrices, int(table[:, :, 2].max()))


def _num_bytes(pair: Pair) -> int:
    """Return the memory of a pair's converted matrices in an arena, in bytes."""
    rank = pair.rank + -pair.rank % LORA_RANKS
    return sum(aligned_bytes(rank * width * torch.half.itemsize) for width in (pair.down.shape[1], pair.up.shape[0]))


def _padded(matrix: Tensor) -> Tensor:
    """Return the matrix with rows of zeros up to a multiple of LORA_RANKS."""
    missing = -matrix.shape[0] % LORA_RANKS
    return torch.cat([matrix, matrix.new_zeros(missing, matrix.shape[1])]) if missing else matrix


def _down_panels(down: Tensor) -> Tensor:
    """Return the matrix (rank, inputs) in the order (group of 4 ranks, group of 16 inputs, rank, input)."""
    padded = _padded(down)
    return padded.view(-1, LORA_RANKS, padded.shape[1] // _PANEL, _PANEL).transpose(1, 2)


def _up_panels(up: Tensor) -> Tensor:
    """Return the matrix (outputs, rank) in the order (panel, rank, output)."""
    padded = _padded(up.T)
    return padded.view(padded.shape[0], -1, _PANEL).transpose(0, 1)


def _halves(matrix: Tensor) -> tuple[Tensor, float]:
    """Return the matrix in float16, divided by a power of two, and that power. The largest magnitude is then 0.5 to 1.

    float16 has a smaller exponent range than float32. Small values would otherwise lose precision.
    """
    largest = float(matrix.abs().max())
    power = 2.0 ** int(torch.tensor(largest).log2().ceil()) if largest > 0 else 1.0
    return (matrix / power).half().contiguous(), power


def without_gate(linear: KernelLinear) -> KernelLinear:
    """Return a layer with the same weights that does not apply silu(gate) * up.

    Its outputs alternate: 16 of gate, then the matching 16 of up.
    """
    packed = linear.packed
    return from_packed(replace(packed, kind=replace(packed.kind, is_gated=False)))
