"""Stores the structure of a packed decoder, so that the next start reads its weights without transformers' models.

The weights stay in the GGUF file. A plan names, for each packed layer, its tensors in the file. The plan's file
contains the other tensors, which are small: norms, rotary frequencies, biases. A plan is valid for one precision and one
version of all other inputs. Its path depends on all of them. It is valid for every CPU that has compiled kernels: the
weights get the layout of the CPU that reads the plan. So the plans in a container image fit every CPU of its architecture.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from inference_server.cpu.decoder_weights import DecoderWeights
from inference_server.cpu.linear.backends import BACKENDS
from inference_server.cpu.linear.kernel_linear import KernelLinear, WeightFormat
from inference_server.cpu.linear.pack import pack
from inference_server.kernels.isa.choice import chosen
from inference_server.precision import Precision
from inference_server.weights import packed_cache
from inference_server.weights.gguf.file import FileTensor
from inference_server.weights.gguf.linear import FileLinear, read_embedding
from inference_server.weights.gguf.places import Places
from inference_server.weights.gguf.shared_tensors import shared, state_of
from inference_server.weights.model_info import ModelInfo

_FORMAT = 1  # increment when the plan's content changes
_PRECISIONS: dict[WeightFormat, Precision] = {
    "int4": "int4",
    "int8": "bitsandbytes-int8",
    "bf16": "bfloat16",
    "float32": "float32",
}


class NoPlan(ValueError):
    """The decoder contains a tensor that cannot be found in the file."""


@dataclass(frozen=True, slots=True)
class Planned:
    """A decoder that was read according to a plan."""

    decoder: DecoderWeights
    info: ModelInfo


def plan_path(folder: Path, precision: Precision, *, batch_invariant: bool, rope: str = "") -> Path:
    """Return the path of a plan, which may not exist.

    Args:
        folder: The folder that describes the file.
        precision: The precision in which the model is packed.
        batch_invariant: The setting of the same name, which changes the choice of kernels.
        rope: Name of the rotary frequencies, if they are not those of the model's configuration.
    """
    determining = json.dumps([_FORMAT, packed_cache.FORMAT, version("torch")])
    digest = hashlib.sha256(determining.encode()).hexdigest()[:8]
    variant = "-".join(part for part in (precision, "invariant" if batch_invariant else "", rope) if part)
    # No plan is written without kernels.
    return folder / f"plan-{variant}.{'torch' if chosen() is None else 'kernels'}-{digest}.safetensors"


def write_plan(
    path: Path, decoder: DecoderWeights, info: ModelInfo, places: Places, embeddings: Mapping[int, FileTensor]
) -> None:
    """Write a decoder's plan.

    Args:
        path: The result of `plan_path`.
        decoder: The decoder.
        info: The model's other properties.
        places: The memory of the decoder's packed layers.
        embeddings: Tensors of the file by the memory address of parameters with the same weights.

    Raises:
        NoPlan: A packed layer, the embedding or another large tensor cannot be read from the file.
        OSError: The plan cannot be written.
    """
    layers = {linear.packed.weights.data_ptr(): linear for linear in decoder.linears}
    linears: dict[str, Any] = {}
    own: dict[str, Tensor] = {}
    embedding = None
    tensors = dict(packed_cache.tensors_of(decoder))
    for name, tensor in tensors.items():
        stem, _, part = name.rpartition(".")
        if part == "weights" and tensor.data_ptr() not in places.sources:  # the case for experts and their router
            raise NoPlan("a packed layer cannot be read from the file")
        if part == "weights":
            layer, sources = layers[tensor.data_ptr()], places.sources[tensor.data_ptr()]
            linears[stem] = {"kind": asdict(layer.packed.kind), "sources": [_described(each) for each in sources]}
            biases = {f"{stem}.{index}.bias": each.bias for index, each in enumerate(sources)}
            own |= {key: bias.contiguous() for key, bias in biases.items() if bias is not None}
        elif name == packed_cache.EMBEDDING and tensor.data_ptr() in embeddings:
            embedding = {"tensor": asdict(embeddings[tensor.data_ptr()]), "dtype": str(decoder.dtype).partition(".")[2]}
        elif part not in ("scales", "bias") or f"{stem}.weights" not in tensors:
            own[name] = tensor.contiguous()
    if embedding is None or any(tensor.nbytes > 1 << 22 for tensor in own.values()):
        raise NoPlan("a large tensor cannot be read from the file")
    structure = packed_cache.structure_of(decoder)
    metadata = {"info": asdict(info), "structure": structure, "linears": linears, "embedding": embedding}
    unfinished = path.with_suffix(f".{os.getpid()}.part")
    save_file(own, unfinished, {"tailrace": json.dumps(metadata)})
    unfinished.rename(path)


def read_plan(path: Path, source: Path) -> Planned:
    """Read a decoder's weights from the GGUF file `source` according to the plan at `path`.

    Raises:
        ValueError: The plan is damaged, or this CPU has no kernel for one of its layers.
    """
    try:
        return _read_plan(path, source)
    except (ValueError, MemoryError):  # a ValueError has its own message; a lack of memory does not mean damage
        raise
    except Exception as error:  # reading damaged files raises errors of many types
        raise ValueError(f"{path.name} cannot be used: {error}") from error


def _read_plan(path: Path, source: Path) -> Planned:
    with safe_open(path, framework="pt") as file:
        metadata = json.loads(file.metadata()["tailrace"])
        own = {name: file.get_tensor(name) for name in file.keys()}
    places, state = Places(), state_of(source)
    parts: dict[str, Any] = {name: tensor for name, tensor in own.items() if not name.endswith(".bias")}
    described = metadata["embedding"]
    place, dtype = FileTensor(**_with_shape(described["tensor"])), getattr(torch, described["dtype"])
    parts[packed_cache.EMBEDDING] = shared(state, described, lambda: read_embedding(source, place, dtype))
    tasks = []
    for name, described in metadata["linears"].items():
        sources = [
            _linear(source, one, own.get(f"{name}.{index}.bias"), places)
            for index, one in enumerate(described["sources"])
        ]
        task = partial(shared, state, described, partial(_packed, sources, described["kind"]))
        tasks.append((sum(one.num_stored_bytes for one in sources), task))
    parts |= zip(metadata["linears"], places.in_parallel(tasks), strict=True)
    decoder = packed_cache.decoder_of(metadata["structure"], parts, BACKENDS)
    return Planned(decoder, ModelInfo(**metadata["info"]))


def _packed(sources: list[FileLinear], kind: dict[str, Any]) -> KernelLinear:
    """Return the packed layer. Raises ValueError if this CPU's kernels need a kind of layer other than the plan's."""
    layer = pack(
        sources,
        _PRECISIONS[kind["weight_format"]],
        batch_invariant=kind["is_invariant"],
        is_head=kind["is_head"],
        is_gated=kind["is_gated"],
    )
    if not isinstance(layer, KernelLinear) or asdict(layer.packed.kind) != kind:
        raise ValueError("this CPU has no kernel for a layer of the plan")
    return layer


def _described(source: FileLinear) -> dict[str, Any]:
    return {
        "tensor": asdict(source.tensor),
        "heads": source.heads,
        "is_head": source.is_head,
        "widens": source.widens,
    }


def _linear(source: Path, described: dict[str, Any], bias: Tensor | None, places: Places) -> FileLinear:
    tensor = FileTensor(**_with_shape(described["tensor"]))
    options = {name: described[name] for name in ("heads", "is_head", "widens")}
    return FileLinear(source, tensor, places, bias=bias, **options)


def _with_shape(tensor: dict[str, Any]) -> dict[str, Any]:
    """Return a tensor's description with its shape as a tuple, which JSON does not have."""
    return tensor | {"shape": tuple(tensor["shape"])}
