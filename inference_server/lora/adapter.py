"""Reads the matrices of a LoRA adapter in PEFT's format. Does not import peft or transformers.

An adapter adds up · (down · x) to the result of a linear layer with the activations x. PEFT's names are lora_A for
`down` and lora_B for `up`. PEFT multiplies the product by a factor, which `up` already contains here.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from inference_server.errors import UnsupportedModel, first_line
from inference_server.lora.config import MAX_RANK, WEIGHTS_FILE, AdapterConfig, read_config

# Fused layers, each with the names of the layers that it combines, in the order of their outputs.
FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
_NAME = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")


@dataclass(frozen=True, slots=True)
class Pair:
    """The LoRA matrices of one linear layer, float32."""

    down: Tensor  # (rank, inputs)
    up: Tensor  # (outputs, rank), multiplied by the adapter's factor

    @property
    def rank(self) -> int:
        """Return the rank: the number of rows of `down`, and of columns of `up`."""
        return self.down.shape[0]


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA adapter.

    Attributes:
        folder: Its folder, for messages.
        pairs: The matrices, by the name of the linear layer in transformers' model, such as model.layers.0.mlp.up_proj.
    """

    folder: Path
    pairs: Mapping[str, Pair]

    @property
    def num_bytes(self) -> int:
        """Return the memory of the matrices in bytes."""
        return sum(pair.down.nbytes + pair.up.nbytes for pair in self.pairs.values())


def read_adapter(folder: Path, device: torch.device | None = None) -> Adapter:
    """Read the matrices of an adapter as float32, and multiply `up` by the adapter's factor.

    Args:
        folder: Folder with adapter_config.json and adapter_model.safetensors.
        device: Device of the matrices; None for the CPU.

    Raises:
        UnsupportedModel: A file is missing or damaged, or the adapter is of an unsupported kind. The message names the folder.
    """
    config = read_config(folder)
    try:
        tensors = load_file(folder / WEIGHTS_FILE, device=str(device or "cpu"))
    except (SafetensorError, OSError, ValueError) as error:
        raise UnsupportedModel(f"{folder / WEIGHTS_FILE} is damaged: {first_line(error)}") from None
    sides: dict[str, dict[str, Tensor]] = {"A": {}, "B": {}}
    for name, tensor in tensors.items():
        match = _NAME.fullmatch(name)
        if match is None or tensor.dim() != 2:
            raise UnsupportedModel(f"the adapter {folder} contains {name}, which this server cannot apply")
        sides[match["side"]][match["module"]] = tensor
    downs, ups = sides["A"], sides["B"]
    if unpaired := sorted(downs.keys() ^ ups.keys()):
        raise UnsupportedModel(f"the adapter {folder} has only one of two matrices for {unpaired[0]}")
    if not downs:
        raise UnsupportedModel(f"the adapter {folder} contains no matrices")
    return Adapter(folder, {module: _pair(folder, module, down, ups[module], config) for module, down in downs.items()})


def _pair(folder: Path, module: str, down: Tensor, up: Tensor, config: AdapterConfig) -> Pair:
    rank = down.shape[0]
    if up.shape[1] != rank or not 1 <= rank <= MAX_RANK:
        raise UnsupportedModel(
            f"the adapter {folder} has matrices of the ranks {rank} and {up.shape[1]} for {module}: "
            f"both must have the same rank, 1 to {MAX_RANK}"
        )
    pair = Pair(down.float().contiguous(), (up.float() * config.factor(module, rank)).contiguous())
    if not all(bool(each.isfinite().all()) for each in (pair.down, pair.up)):
        raise UnsupportedModel(f"the adapter {folder} has numbers that are not finite for {module}")
    return pair


def fitted(adapter: Adapter, shapes: Mapping[str, tuple[int, int]]) -> Mapping[str, Pair]:
    """Return the matrices of an adapter by the names of the model's linear layers.

    The matrices of a fused layer, such as Phi 3's qkv_proj, are divided among the layers that it combines.

    Args:
        adapter: The adapter.
        shapes: Outputs and inputs of the model's linear layers, by their names in transformers' model.

    Raises:
        UnsupportedModel: The adapter has matrices for a module that is not among these layers, or with different sizes.
    """
    pairs = _divided(adapter.pairs, shapes)
    for module, pair in pairs.items():
        if module not in shapes:
            raise UnsupportedModel(
                f"the adapter {adapter.folder} adapts {module}, which is not a linear layer that this server can adapt"
            )
        found, wanted = (pair.up.shape[0], pair.down.shape[1]), shapes[module]
        if found != wanted:
            raise UnsupportedModel(
                f"the adapter {adapter.folder} belongs to another model: for {module} it has {found[1]} inputs and "
                f"{found[0]} outputs, the model has {wanted[1]} and {wanted[0]}"
            )
    return pairs


def _divided(pairs: Mapping[str, Pair], shapes: Mapping[str, tuple[int, int]]) -> dict[str, Pair]:
    found: dict[str, Pair] = {}
    for module, pair in pairs.items():
        parent, _, name = module.rpartition(".")
        parts = [f"{parent}.{part}" for part in FUSED.get(name, ())]
        outputs = [shapes[part][0] for part in parts if part in shapes]
        if module in shapes or not parts or len(outputs) < len(parts) or sum(outputs) != pair.up.shape[0]:
            found[module] = pair
            continue
        for part, up in zip(parts, torch.split(pair.up, outputs), strict=True):
            found[part] = Pair(pair.down, up.contiguous())
    return found
