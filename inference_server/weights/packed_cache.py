"""A packed model in a folder, so that the next start neither packs it again nor imports transformers' models.

Format: `model.safetensors` with the decoder's tensors as the kernels read them, and in its metadata, as JSON under
`tailrace`, what is not a tensor; beside it the tokenizer as transformers saves it. A folder is good for one source of
weights, one precision and one version of everything that decides about its content: all of it is in the folder's name.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from inference_server.attention.torch_attention import Form
from inference_server.cpu.decoder_weights import Decoder, Layer, Rotary
from inference_server.cpu.linear.amx.layers import CompiledLinear, Packed, of_packed
from inference_server.precision import Precision
from inference_server.weights.atomic_folder import made_once

logger = logging.getLogger(__name__)

_FORMAT = 2  # to be counted up when what is written changes
_FILE = "model.safetensors"
_LINEARS = ("qkv", "output", "gate_up", "down")
_DECIDING = ("torch", "transformers", "bitsandbytes")


class NoKernel(ValueError):
    pass


@dataclass(frozen=True, slots=True)
class Facts:
    """Of a model, beside its tensors."""

    model_type: str  # transformers' name of the architecture
    max_tokens: int | None  # of prompt and reply, if the model has a limit
    end_ids: list[int]  # of its generation config


def packed_folder(cache_dir: Path, source: Path, precision: Precision, *, batch_invariant: bool) -> Path:
    """Where the model in the folder `source` is packed, or will be."""
    kind = f"{precision}-invariant" if batch_invariant else precision
    place = hashlib.sha256(str(source.resolve()).encode()).hexdigest()[:8]
    facts: list[Any] = [_FORMAT, *(version(package) for package in _DECIDING)]
    for path in sorted(source.iterdir()):
        status = path.stat()
        facts.append([path.name, status.st_size, status.st_mtime_ns])
    digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
    return cache_dir / "packed" / f"{place}-{kind}-{digest}"


def write(folder: Path, decoder: Decoder, facts: Facts, tokenizer: Any) -> None:
    """Does nothing, and says why in the log, where the folder cannot be written or would not give the same tokenizer."""
    try:
        with made_once(folder) as unfinished:
            tokenizer.save_pretrained(unfinished)
            if not _same(tokenizer, PreTrainedTokenizerFast.from_pretrained(unfinished)):
                raise ValueError("its tokenizer has no form that is read faster")
            save_file(dict(_tensors(decoder)), unfinished / _FILE, {"tailrace": json.dumps(_rest(decoder, facts))})
    except (OSError, ValueError) as reason:
        logger.info("the packed model is not kept for the next start: %s", reason)
        return
    _remove_older(folder)


def read(folder: Path) -> tuple[Decoder, Facts, Any]:
    """Decoder, facts and tokenizer. Raises ValueError if this CPU lacks a kernel for it, or it is broken, which removes it."""
    try:
        with safe_open(folder / _FILE, framework="pt") as file:
            rest = json.loads(file.metadata()["tailrace"])
            decoder = _decoder(rest, file)
        return decoder, Facts(**rest["facts"]), PreTrainedTokenizerFast.from_pretrained(folder)
    except (NoKernel, MemoryError):  # neither is the folder's fault
        raise
    except Exception as error:  # a broken file shows itself in whatever way its reader happens to stumble
        shutil.rmtree(folder, ignore_errors=True)
        raise ValueError(f"what was packed cannot be read: {error}") from error


def _tensors(decoder: Decoder) -> Iterator[tuple[str, Tensor]]:
    yield "embedding", decoder.embedding
    yield "norm", decoder.norm
    yield "inverse_frequencies", decoder.rotary.inverse_frequencies
    yield from _linear_tensors("head", decoder.head)
    for index, layer in enumerate(decoder.layers):
        yield f"{index}.input_norm", layer.input_norm
        yield f"{index}.post_norm", layer.post_norm
        for name in _LINEARS:
            yield from _linear_tensors(f"{index}.{name}", getattr(layer, name))


def _linear_tensors(name: str, linear: CompiledLinear) -> Iterator[tuple[str, Tensor]]:
    packed = linear.packed
    yield f"{name}.weights", packed.weights
    yield f"{name}.bias", packed.bias
    if packed.scales is not None:
        yield f"{name}.scales", packed.scales


def _rest(decoder: Decoder, facts: Facts) -> dict[str, Any]:
    return {
        "facts": asdict(facts),
        "eps": decoder.eps,
        "num_heads": decoder.num_heads,
        "num_kv_heads": decoder.num_kv_heads,
        "rotary_scaling": decoder.rotary.scaling,
        "head": _named(decoder.head),
        "layers": [
            {"form": asdict(layer.form), **{name: _named(getattr(layer, name)) for name in _LINEARS}}
            for layer in decoder.layers
        ],
    }


def _named(linear: CompiledLinear) -> dict[str, Any]:
    return {"kind": linear.packed.kind, "shape": linear.packed.shape}


def _decoder(rest: dict[str, Any], file: Any) -> Decoder:
    return Decoder(
        embedding=file.get_tensor("embedding"),  # stays in the file: of many rows, few are read
        rotary=Rotary(_loaded(file, "inverse_frequencies"), rest["rotary_scaling"]),
        layers=[
            Layer(
                input_norm=_loaded(file, f"{index}.input_norm"),
                post_norm=_loaded(file, f"{index}.post_norm"),
                form=Form(**layer["form"]),
                **{name: _linear(file, f"{index}.{name}", layer[name]) for name in _LINEARS},
            )
            for index, layer in enumerate(rest["layers"])
        ],
        norm=_loaded(file, "norm"),
        head=_linear(file, "head", rest["head"]),
        eps=rest["eps"],
        num_heads=rest["num_heads"],
        num_kv_heads=rest["num_kv_heads"],
    )


def _linear(file: Any, name: str, named: dict[str, Any]) -> CompiledLinear:
    kind, (out_features, in_features) = named["kind"], named["shape"]
    scales = _loaded(file, f"{name}.scales") if f"{name}.scales" in file.keys() else None
    weights, bias = _loaded(file, f"{name}.weights"), _loaded(file, f"{name}.bias")
    packed = Packed(kind, (out_features, in_features), weights, scales, bias)
    try:
        return of_packed(packed)
    except ValueError as reason:
        raise NoKernel(str(reason)) from None


def _loaded(file: Any, name: str) -> Tensor:
    """In memory of its own: there it begins where tiles are read fastest, and in large pages."""
    tensor: Tensor = file.get_tensor(name)
    return tensor.clone(memory_format=torch.contiguous_format)


def _same(one: Any, other: Any) -> bool:
    """Whether two tokenizers are alike in all that prompt.py asks of them."""
    return all(
        of(one) == of(other)
        for of in (
            lambda each: each.backend_tokenizer.to_str(),
            lambda each: (each.bos_token, each.eos_token_id, each.chat_template),
            lambda each: {number: repr(token) for number, token in each.added_tokens_decoder.items()},
        )
    )


def _remove_older(folder: Path) -> None:
    """The same source in the same precision, but as it was, or as another version packed it."""
    kind = folder.name.rpartition("-")[0]
    for other in folder.parent.iterdir():
        if other != folder and other.name.rpartition("-")[0] == kind:
            shutil.rmtree(other, ignore_errors=True)
