"""Stores packed models in folders, so that the next start neither packs again nor imports transformers' models.

Format: `model.safetensors` contains the decoder's tensors as the kernels read them; its metadata contains, as JSON under
`tailrace`, everything else. The tokenizer is in the same folder, as transformers saves it. A folder belongs to one
source of weights, one precision, one layout of the packed weights, and one version of everything else that determines
its content. The folder's name depends on all of these.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from collections.abc import Sequence as Items
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from inference_server.attention.torch_attention import AttentionSpec
from inference_server.cpu.decoder_weights import DecoderWeights, ExpertWeights, LayerWeights, Rotary
from inference_server.cpu.experts import PackedExperts
from inference_server.cpu.large_pages import moved
from inference_server.cpu.linear.backends import BACKENDS, LinearBackend, from_packed, preferred_layout
from inference_server.cpu.linear.kernel_linear import KernelLinear, LinearKind, PackedWeights
from inference_server.cpu.routers import PackedRouter, RouterChoice
from inference_server.kernels.jit.arguments import HeadNorms
from inference_server.precision import Precision
from inference_server.weights.disk.atomic_folder import atomic_directory
from inference_server.weights.model_info import ModelInfo
from inference_server.weights.tensor_file import reading
from inference_server.weights.tokenizers import read_tokenizer
from tailrace_shared.config_errors import ConfigurationError

logger = logging.getLogger(__name__)

FORMAT = 6  # increment when the files' content changes
_FILE = "model.safetensors"
EMBEDDING = "embedding"  # not copied into memory: a forward pass reads only a few rows of the mapped file
_LINEARS = ("qkv", "output", "gate_up", "down")
_DETERMINING_PACKAGES = ("torch", "transformers", "bitsandbytes")


class NoKernel(ValueError):
    """No kernel of this CPU reads the packed weights."""


def packed_folder(
    cache_dir: Path,
    source: Path,
    precision: Precision,
    *,
    batch_invariant: bool,
    backends: Items[LinearBackend] = BACKENDS,
    rope: str = "",
) -> Path:
    """Return the folder for a model's packed form, which may not exist yet.

    Args:
        cache_dir: The server's cache folder.
        source: The folder with the model's own files, which must exist.
        precision: The precision in which the model is packed.
        batch_invariant: The setting of the same name, which changes the choice of kernels.
        backends: The candidates for linear layers; the layout of the first that can run here is part of the name.
        rope: Name of the rotary frequencies, if they are not those of the model's configuration.
    """
    variant = "-".join(part for part in (precision, "invariant" if batch_invariant else "", rope) if part)
    place = hashlib.sha256(str(source.resolve()).encode()).hexdigest()[:8]
    determining: list[Any] = [FORMAT, *(version(package) for package in _DETERMINING_PACKAGES)]
    for path in sorted(source.iterdir()):
        status = path.stat()
        determining.append([path.name, status.st_size, status.st_mtime_ns])
    digest = hashlib.sha256(json.dumps(determining).encode()).hexdigest()[:16]
    return cache_dir / "packed" / f"{place}-{variant}.{preferred_layout(backends)}-{digest}"


def write(folder: Path, decoder: DecoderWeights, info: ModelInfo, tokenizer: Any) -> None:
    """Write a packed model, and remove older versions of it.

    Logs the reason and writes nothing if the folder cannot be written, or if a tokenizer read from it would differ.

    Args:
        folder: The path returned by `packed_folder`.
        decoder: The packed weights.
        info: The model's other properties.
        tokenizer: The transformers tokenizer.
    """
    try:
        num_bytes = sum(tensor.nbytes for _, tensor in tensors_of(decoder))
        with atomic_directory(folder, num_bytes=num_bytes) as unfinished:
            tokenizer.save_pretrained(unfinished)
            if not is_same_tokenizer(tokenizer, read_tokenizer(unfinished)):
                raise ValueError("its tokenizer changes when it is saved in the fast format")
            metadata = {"info": asdict(info), **structure_of(decoder)}
            save_file(dict(tensors_of(decoder)), unfinished / _FILE, {"tailrace": json.dumps(metadata)})
    except (OSError, ValueError, ConfigurationError) as reason:
        logger.info("the packed model is not kept for the next start: %s", reason)
        return
    _remove_older(folder)


def read(folder: Path, backends: Items[LinearBackend] = BACKENDS) -> tuple[DecoderWeights, ModelInfo, Any]:
    """Return a packed model's weights, its other properties and its tokenizer.

    Raises:
        ValueError: No kernel of this CPU reads the weights, or the folder's content is damaged. A damaged folder is removed.
    """
    try:
        with reading(folder / _FILE, mapped=[EMBEDDING]) as file:
            metadata = json.loads(file.metadata["tailrace"])
            decoder = decoder_of(metadata, file.tensors, backends)
            tokenizer = read_tokenizer(folder)
        return decoder, ModelInfo(**metadata["info"]), tokenizer
    except (NoKernel, MemoryError):  # these errors do not mean that the files are damaged
        raise
    except Exception as error:  # reading damaged files raises errors of many types
        shutil.rmtree(folder, ignore_errors=True)
        raise ValueError(f"the packed model cannot be read: {error}") from error


def in_large_pages(decoder: DecoderWeights, backends: Items[LinearBackend] = BACKENDS) -> DecoderWeights:
    """Return a packed model whose tensors are copied into large pages. The embedding is not copied.

    Tensors that `read` loads from a folder are in large pages already.
    """
    tensors = dict(tensors_of(decoder))
    embedding = tensors.pop(EMBEDDING)
    return decoder_of(structure_of(decoder), {EMBEDDING: embedding, **moved(tensors)}, backends)


def tensors_of(decoder: DecoderWeights) -> Iterator[tuple[str, Tensor]]:
    """Yield the decoder's tensors by name.

    Those of a linear layer are NAME.weights, NAME.bias and, unless the weights contain them, NAME.scales. For a
    StoredEmbedding, the tensor contains the file's bytes.
    """
    yield EMBEDDING, decoder.embedding if isinstance(decoder.embedding, Tensor) else decoder.embedding.rows
    yield "norm", decoder.norm
    yield "inverse_frequencies", decoder.rotary.inverse_frequencies
    yield from _linear_tensors("head", decoder.head)
    for index, layer in enumerate(decoder.layers):
        yield f"{index}.input_norm", layer.input_norm
        yield f"{index}.post_norm", layer.post_norm
        if layer.head_norms is not None:
            yield f"{index}.query_norm", layer.head_norms.query
            yield f"{index}.key_norm", layer.head_norms.key
        for name, linear in _linears_of(layer).items():
            yield from _linear_tensors(f"{index}.{name}", linear)


def _linears_of(layer: LayerWeights) -> dict[str, KernelLinear]:
    """Return the linear layers of a layer, with those of its experts and their router, by name."""
    named = {name: getattr(layer, name) for name in _LINEARS}
    if layer.experts is not None:
        named["router"] = layer.experts.product
        for number, (gate_up, down) in enumerate(layer.experts.linears):
            named |= {f"experts.{number}.gate_up": gate_up, f"experts.{number}.down": down}
    return {name: linear for name, linear in named.items() if linear is not None}


def _linear_tensors(name: str, linear: KernelLinear) -> Iterator[tuple[str, Tensor]]:
    packed = linear.packed
    yield f"{name}.weights", packed.weights
    yield f"{name}.bias", packed.bias
    if packed.scales is not None:
        yield f"{name}.scales", packed.scales


def structure_of(decoder: DecoderWeights) -> dict[str, Any]:
    """Return all properties of a decoder except its tensors, as JSON values."""
    return {
        "eps": decoder.eps,
        "num_heads": decoder.num_heads,
        "num_kv_heads": decoder.num_kv_heads,
        "rotary_scaling": decoder.rotary.scaling,
        "embedding_factor": decoder.embedding_factor,
        "residual_factor": decoder.residual_factor,
        "head": _linear_metadata(decoder.head),
        "layers": [
            {
                "attention": asdict(layer.attention),
                "rotates": layer.rotates,
                "head_norm_eps": None if layer.head_norms is None else layer.head_norms.eps,
                "linears": {name: _linear_metadata(linear) for name, linear in _linears_of(layer).items()},
                "choice": asdict(layer.experts.router.choice) if layer.experts else None,
            }
            for layer in decoder.layers
        ],
    }


def _linear_metadata(linear: KernelLinear) -> dict[str, Any]:
    packed = linear.packed
    return {"layout": packed.layout, "kind": asdict(packed.kind), "shape": packed.shape}


def decoder_of(
    metadata: dict[str, Any], tensors: Mapping[str, Any], backends: Items[LinearBackend] = BACKENDS
) -> DecoderWeights:
    """Return the decoder with these tensors and the structure `metadata`, a result of `structure_of`.

    A StoredEmbedding may replace the embedding's tensor. A KernelLinear under a layer's name replaces its tensors.

    Raises:
        NoKernel: No kernel of this CPU reads the packed weights of a layer.
    """
    return DecoderWeights(
        embedding=tensors[EMBEDDING],
        rotary=Rotary(tensors["inverse_frequencies"], metadata["rotary_scaling"]),
        layers=[_layer(tensors, index, layer, backends) for index, layer in enumerate(metadata["layers"])],
        norm=tensors["norm"],
        head=_linear(tensors, "head", metadata["head"], backends),
        eps=metadata["eps"],
        num_heads=metadata["num_heads"],
        num_kv_heads=metadata["num_kv_heads"],
        embedding_factor=metadata["embedding_factor"],
        residual_factor=metadata["residual_factor"],
    )


def _layer(
    tensors: Mapping[str, Any], index: int, metadata: dict[str, Any], backends: Items[LinearBackend]
) -> LayerWeights:
    linears = {
        name: _linear(tensors, f"{index}.{name}", described, backends)
        for name, described in metadata["linears"].items()
    }
    experts = None
    if metadata["choice"] is not None:
        router = PackedRouter(linears["router"], RouterChoice(**metadata["choice"]))
        gate_up, down = (
            [linear for name, linear in linears.items() if name.startswith("experts.") and name.endswith(f".{part}")]
            for part in ("gate_up", "down")
        )
        experts = ExpertWeights(router, PackedExperts(gate_up, down))
    return LayerWeights(
        input_norm=tensors[f"{index}.input_norm"],
        post_norm=tensors[f"{index}.post_norm"],
        attention=AttentionSpec(**metadata["attention"]),
        head_norms=_head_norms(tensors, index, metadata["head_norm_eps"]),
        rotates=metadata["rotates"],
        qkv=linears["qkv"],
        output=linears["output"],
        gate_up=linears.get("gate_up"),
        down=linears.get("down"),
        experts=experts,
    )


def _head_norms(tensors: Mapping[str, Any], layer: int, eps: float | None) -> HeadNorms | None:
    return None if eps is None else HeadNorms(tensors[f"{layer}.query_norm"], tensors[f"{layer}.key_norm"], eps)


def _linear(
    tensors: Mapping[str, Any], name: str, metadata: dict[str, Any], backends: Items[LinearBackend]
) -> KernelLinear:
    if isinstance(ready := tensors.get(name), KernelLinear):
        return ready
    kind, (out_features, in_features) = LinearKind(**metadata["kind"]), metadata["shape"]
    weights, scales, bias = tensors[f"{name}.weights"], tensors.get(f"{name}.scales"), tensors[f"{name}.bias"]
    packed = PackedWeights(metadata["layout"], kind, (out_features, in_features), weights, scales, bias)
    try:
        return from_packed(packed, backends)
    except ValueError as reason:
        raise NoKernel(str(reason)) from None


def is_same_tokenizer(one: Any, other: Any) -> bool:
    """Return True if two tokenizers agree in everything that text/prompt_encoder.py uses."""
    return all(
        part(one) == part(other)
        for part in (
            lambda each: each.backend_tokenizer.to_str(),
            lambda each: (each.bos_token, each.eos_token_id, each.chat_template),
            lambda each: {number: repr(token) for number, token in each.added_tokens_decoder.items()},
        )
    )


def _remove_older(folder: Path) -> None:
    """Remove folders that other versions packed from the same source in the same precision and layout.

    Until format 2, the folders' names lacked the layout, which now follows the ".".
    """
    group = folder.name.rpartition("-")[0]
    groups = {group, group.rpartition(".")[0]}
    for other in folder.parent.iterdir():
        if other != folder and other.name.rpartition("-")[0] in groups:
            shutil.rmtree(other, ignore_errors=True)
