"""Adds LoRA adapters to a model that runs as torch modules: transformers' modules, or the fused decoder of a GPU.

A hook on each adapted linear layer adds up · (down · x) to its result, with the matrices of each row's adapter. In
passes without adapters, each hook only makes one comparison.
"""

from collections.abc import Iterator, Mapping
from collections.abc import Sequence as Items
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from inference_server.cpu.adapters import without_gate
from inference_server.cpu.fused_modules import FusedAttention, FusedMLP
from inference_server.gpu.decoder import GpuDecoder
from inference_server.gpu.inputs import upload
from inference_server.lora.adapter import FUSED, Adapter, Pair, fitted

_PANEL = 16  # outputs of gate, then of up, in the result of a KernelLinear from `without_gate`


@dataclass(frozen=True, slots=True)
class LayerPart:
    """A linear layer of the checkpoint: the `num_outputs` outputs from `first` on of `module`, which may be fused."""

    module: nn.Module
    first: int
    num_outputs: int
    num_inputs: int


@dataclass(frozen=True, slots=True)
class Group:
    """The rows of a pass that use one adapter. `adapter`: its number, from 1. `rows`: int64; None for all rows."""

    adapter: int
    rows: Tensor | None


class _Matrices:
    """The matrices of all adapters for one part, with zeros for adapters without matrices."""

    def __init__(self, part: LayerPart, pairs: list[Pair | None], dtype: torch.dtype, device: torch.device) -> None:
        rank = max(pair.rank for pair in pairs if pair is not None)
        self.columns = slice(part.first, part.first + part.num_outputs)
        shape = {"dtype": dtype, "device": device}
        # Entry 0, for rows without an adapter, stays zero.
        self.down = torch.zeros(len(pairs) + 1, rank, part.num_inputs, **shape)  # type: ignore[call-overload]
        self.up = torch.zeros(len(pairs) + 1, part.num_outputs, rank, **shape)  # type: ignore[call-overload]
        for index, pair in enumerate(pairs, start=1):
            if pair is not None:
                self.down[index, : pair.rank] = pair.down
                self.up[index, :, : pair.rank] = pair.up
        self.adapted = {index for index, pair in enumerate(pairs, start=1) if pair is not None}

    def add_gathered(self, x: Tensor, out: Tensor, adapters: Tensor) -> None:
        """Add up · (down · x) with each row's adapter to `out` (n, outputs). Never waits for the device.

        `adapters`: the adapter of each row, (n,) on the device.
        """
        indices = adapters.long()
        ranks = torch.bmm(self.down.index_select(0, indices), x.to(self.down.dtype)[:, :, None])
        out[:, self.columns] += torch.bmm(self.up.index_select(0, indices), ranks)[:, :, 0].to(out.dtype)

    def add_grouped(self, x: Tensor, out: Tensor, groups: list[Group]) -> None:
        """Add up · (down · x) with the adapter of each group of rows to `out` (n, outputs)."""
        for group in groups:
            if group.adapter not in self.adapted:
                continue
            rows = x if group.rows is None else x.index_select(0, group.rows)
            ranks = rows.to(self.down.dtype) @ self.down[group.adapter].T
            result = (ranks @ self.up[group.adapter].T).to(out.dtype)
            part = out[:, self.columns]
            if group.rows is None:
                part += result
            else:
                part.index_add_(0, group.rows, result)


class ModuleAdapters:
    """The adapters of one model, applied in the passes inside the context manager `rows`."""

    def __init__(
        self, parts: Mapping[str, LayerPart], adapters: Items[Adapter], dtype: torch.dtype, device: torch.device
    ) -> None:
        """Add the hooks.

        Args:
            parts: The linear layers that can be adapted, by their names in transformers' model.
            adapters: The adapters.
            dtype: The dtype in which the matrices are stored and multiplied.
            device: The device of the model.

        Raises:
            UnsupportedModel: An adapter does not fit the model.
        """
        shapes = {name: (part.num_outputs, part.num_inputs) for name, part in parts.items()}
        fitting = [fitted(adapter, shapes) for adapter in adapters]
        self._device = device
        self._rows: Tensor | list[Group] | None = None
        by_module: dict[nn.Module, list[_Matrices]] = {}
        for name, part in parts.items():
            pairs = [each.get(name) for each in fitting]
            if any(pair is not None for pair in pairs):
                by_module.setdefault(part.module, []).append(_Matrices(part, pairs, dtype, device))
        for module, matrices in by_module.items():
            module.register_forward_hook(self._hook(matrices))

    @contextmanager
    def rows(self, adapters: Items[int] | Tensor) -> Iterator[None]:
        """Apply adapters in the passes of the `with` block.

        Args:
            adapters: The adapter of each row, from 1; 0 for none. A tensor (n,) on the device is read during the pass,
                so that a CUDA graph can record the pass.
        """
        self._rows = adapters if isinstance(adapters, Tensor) else self._groups(adapters)
        try:
            yield
        finally:
            self._rows = None

    def _groups(self, adapters: Items[int]) -> list[Group] | None:
        used = sorted(set(adapters) - {0})
        if len(used) == 1 and 0 not in adapters:
            return [Group(used[0], None)]
        rows = [[row for row, each in enumerate(adapters) if each == adapter] for adapter in used]
        return [
            Group(adapter, upload(found, self._device).long()) for adapter, found in zip(used, rows, strict=True)
        ] or None

    def _hook(self, matrices: list[_Matrices]) -> Any:
        def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            if self._rows is None:
                return None
            x, out = inputs[0].flatten(0, -2), output.flatten(0, -2)
            for each in matrices:
                if isinstance(self._rows, Tensor):
                    each.add_gathered(x, out, self._rows)
                else:
                    each.add_grouped(x, out, self._rows)
            return out.view(output.shape)

        return add


class _Ungated(nn.Module):
    """Gate and up of a fused MLP as one layer without silu(gate) * up: the outputs of gate, then those of up."""

    def __init__(self, linear: nn.Module) -> None:
        """Wrap `linear`, whose outputs alternate between 16 of gate and the matching 16 of up."""
        super().__init__()
        self._linear = linear

    def forward(self, x: Tensor) -> Tensor:
        """Return (…, 2 * width) for x (…, inputs)."""
        product: Tensor = self._linear(x)
        return product.view(*x.shape[:-1], -1, 2, _PANEL).transpose(-3, -2).flatten(-3)


def decoder_parts(decoder: GpuDecoder) -> dict[str, LayerPart]:
    """Return the linear layers of a GPU's fused decoder that can be adapted, by their names in transformers' model."""
    heads, kv_heads, width = decoder.num_heads, decoder.num_kv_heads, decoder.head_dim
    parts: dict[str, LayerPart] = {}
    for index, layer in enumerate(decoder.layers):
        half = layer.gate_up.out_features // 2
        for module, names, outputs in (
            (layer.qkv, ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), _qkv(heads, kv_heads, width)),
            (layer.output, ("self_attn.o_proj",), [layer.output.out_features]),
            (layer.gate_up, ("mlp.gate_proj", "mlp.up_proj"), [half, half]),
            (layer.down, ("mlp.down_proj",), [layer.down.out_features]),
        ):
            parts |= _stacked(module, [f"model.layers.{index}.{name}" for name in names], outputs, module.in_features)
    return parts


def module_parts(model: Any, adapters: Items[Adapter]) -> dict[str, LayerPart]:
    """Return the linear layers of a transformers model that can be adapted, by their original names.

    If an adapter adapts gate or up of a fused MLP on a CPU, silu(gate) * up becomes a separate operation.

    Args:
        model: A transformers causal language model, whose modules may be replaced by those of cpu.fused_modules.
        adapters: The adapters.
    """
    head = model.get_output_embeddings()
    adapted = {name for adapter in adapters for name in adapter.pairs}
    parts: dict[str, LayerPart] = {}
    inner: set[nn.Module] = set()  # modules whose outputs are already listed under other names
    modules: list[tuple[str, Any]] = list(model.named_modules())
    for path, module in modules:
        if isinstance(module, FusedAttention):
            names = [f"{path}.{each}" for each in FUSED["qkv_proj"]]
            linear: Any = module.qkv_proj
            heads, kv_heads = module.num_heads, module.num_kv_heads
            inner.add(linear)
            width = linear.out_features // (heads + 2 * kv_heads)
            parts |= _stacked(linear, names, _qkv(heads, kv_heads, width), linear.in_features)
        elif isinstance(module, FusedMLP):
            names = [f"{path}.{each}" for each in FUSED["gate_up_proj"]]
            gate_up: Any = module.gate_up_proj
            down: Any = module.down_proj
            inner.add(gate_up)
            num_inputs, half = gate_up.in_features, down.in_features
            if getattr(gate_up, "is_gated", False) and not adapted.isdisjoint([*names, f"{path}.gate_up_proj"]):
                module.gate_up_proj = _Ungated(without_gate(gate_up))
            parts |= _stacked(module.gate_up_proj, names, [half, half], num_inputs)
        elif (features := _features(module)) and module is not head and module not in inner:
            parts[path] = LayerPart(module, 0, *features)
    return parts


def _features(module: Any) -> tuple[int, int] | None:
    """Return the numbers of outputs and inputs of a linear layer, or None for another module."""
    for outputs, inputs in (("out_features", "in_features"), ("nf", "nx")):  # nf and nx: Conv1D of GPT-2
        if isinstance(getattr(module, outputs, None), int) and isinstance(getattr(module, inputs, None), int):
            return getattr(module, outputs), getattr(module, inputs)
    return None


def _qkv(heads: int, kv_heads: int, width: int) -> list[int]:
    return [heads * width, kv_heads * width, kv_heads * width]


def _stacked(module: nn.Module, names: list[str], outputs: list[int], num_inputs: int) -> dict[str, LayerPart]:
    firsts = [sum(outputs[:index]) for index in range(len(outputs))]
    return {
        name: LayerPart(module, first, count, num_inputs)
        for name, first, count in zip(names, firsts, outputs, strict=True)
    }
