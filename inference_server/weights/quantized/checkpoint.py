"""Dequantises a checkpoint's weights while transformers reads them, one tensor at a time.

transformers needs an additional package for each of these formats, and loads some of them only on a GPU.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import EllipsisType
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from inference_server.cpu.linear.integer_weights import Int4
from inference_server.errors import UnsupportedModel
from inference_server.weights.quantized import unpacking

# By format: the last part of the name of the tensor that contains a layer's codes.
_MAIN = {"awq": "qweight", "gptq": "qweight", "packed": "weight_packed"}
# Tensors that only describe weights or activations, by the last part of their names.
_COMPANIONS = frozenset(
    {
        *("qzeros", "scales", "g_idx", "weight_scale", "weight_scale_inv", "weight_zero_point", "weight_shape"),
        *("weight_g_idx", "input_scale", "activation_scale", "k_scale", "v_scale", "q_scale"),
    }
)
_BYTE_DTYPES = frozenset({torch.float8_e4m3fn, torch.float8_e5m2, torch.int8})
_COMPRESSED = ("float-quantized", "int-quantized", "naive-quantized", "pack-quantized", "dense")
# Methods that transformers loads itself, or that other parts of this server read.
_LEFT_TO_OTHERS = frozenset({"bitsandbytes", "mxfp4"})
SUPPORTED = "FP8 (fp8, fbgemm_fp8, compressed-tensors, modelopt), AWQ, GPTQ and compressed-tensors with 4 bits"


@dataclass(frozen=True, slots=True)
class Format:
    """The format of a checkpoint's quantised weights.

    Attributes:
        kind: "bytes": FP8 or int8 with scales; "awq", "gptq" or "packed": 4-bit codes.
        zero_offset: Added to the zero points of "gptq".
    """

    kind: str
    zero_offset: int = 0


def read_format(config: Mapping[str, Any]) -> Format | None:
    """Return the format of a checkpoint's weights; None if this module is not needed to read them.

    Args:
        config: The content of its config.json.

    Raises:
        UnsupportedModel: The format is not supported; the message names it.
    """
    quantization = config.get("quantization_config") or (config.get("text_config") or {}).get("quantization_config")
    if not quantization or quantization.get("quant_method") in _LEFT_TO_OTHERS:
        return None
    method, bits = quantization.get("quant_method"), quantization.get("bits", 4)
    match method:
        case "fp8" | "fbgemm_fp8":
            return Format("bytes")
        case "modelopt" if "FP8" in str(quantization.get("quant_algo", "FP8")):
            return Format("bytes")
        case "awq" if bits == 4 and str(quantization.get("version", "gemm")).lower() == "gemm":
            return Format("awq")
        case "gptq" if bits == 4 and quantization.get("checkpoint_format", "gptq") in ("gptq", "gptq_v2"):
            return Format("gptq", 0 if quantization.get("checkpoint_format") == "gptq_v2" else 1)
        case "compressed-tensors":
            return _compressed(quantization)
    detail = ", ".join(
        f"{key} {quantization[key]}"
        for key in ("bits", "version", "checkpoint_format", "quant_algo")
        if key in quantization
    )
    raise _unsupported(f"{method}{f' ({detail})' if detail else ''}")


def _compressed(quantization: Mapping[str, Any]) -> Format:
    groups = list((quantization.get("config_groups") or {}).values())
    formats = {group.get("format") or quantization.get("format") for group in groups} or {quantization.get("format")}
    if len(formats) == 1 and (name := next(iter(formats))) in _COMPRESSED:
        bits = {((group.get("weights") or {}).get("num_bits")) for group in groups}
        if name != "pack-quantized":
            return Format("bytes")
        if bits == {4}:
            return Format("packed")
        raise _unsupported(f"compressed-tensors ({name}, {'/'.join(map(str, bits))} bits)")
    raise _unsupported(f"compressed-tensors ({', '.join(sorted(map(str, formats)))})")


def _unsupported(name: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"its weights are quantised in a format that this server does not read, {name}: use the model's unquantised "
        f"weights, or one of {SUPPORTED}"
    )


class Checkpoint:
    """The tensors of a folder with safetensors files in one of the formats of `read_format`.

    Attributes:
        int4_layers: Names of the layers with 4-bit codes.
    """

    def __init__(self, folder: Path, quantized: Format) -> None:
        """Read the names of all tensors. The tensors themselves are read later."""
        self._format = quantized
        self._files: dict[str, Path] = {}
        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, "pt") as file:
                self._files |= dict.fromkeys(file.keys(), path)
        main = _MAIN.get(quantized.kind)
        self.int4_layers = [
            name.removesuffix(f".{main}") for name in self._files if main is not None and name.endswith(f".{main}")
        ]

    def state(self) -> "dict[str, LazyTensor]":
        """Return every tensor under its name in an unquantised checkpoint. The tensors are read later."""
        return dict(self._tensors())

    def _tensors(self) -> "Iterator[tuple[str, LazyTensor]]":
        for layer in self.int4_layers:
            yield f"{layer}.weight", LazyTensor(partial(self._float_of_int4, layer))
        main = {f"{layer}.{_MAIN[self._format.kind]}" for layer in self.int4_layers}
        for name in self._files:
            if name not in main and name.rpartition(".")[2] not in _COMPANIONS:
                yield name, LazyTensor(partial(self._plain, name))

    def int4(self, layer: str) -> Int4 | None:
        """Return the weights of one of `int4_layers`, or None if the layer's groups do not fit the int4 layout.

        Raises:
            UnsupportedModel: The layer lacks one of its tensors.
        """
        read = partial(self._part, layer)
        try:
            if self._format.kind == "awq":
                return unpacking.awq(self.read(f"{layer}.qweight"), read("qzeros"), read("scales"))
            if self._format.kind == "packed":
                shape = read("weight_shape")
                zeros = self._optional(layer, "weight_zero_point")
                packed = self.read(f"{layer}.weight_packed")
                return unpacking.packed_int4(packed, read("weight_scale"), zeros, int(shape[1]))
            groups = self._optional(layer, "g_idx")
            packed = self.read(f"{layer}.qweight")
            return unpacking.gptq(packed, read("qzeros"), read("scales"), groups, zero_offset=self._format.zero_offset)
        except ValueError:
            return None

    def read(self, name: str) -> Tensor:
        """Return a tensor as the file contains it."""
        with safe_open(self._files[name], "pt") as file:
            tensor: Tensor = file.get_tensor(name)
            return tensor

    def _float_of_int4(self, layer: str) -> Tensor:
        codes = self.int4(layer)
        if codes is not None:
            return codes.dequantize()
        if self._format.kind == "gptq" and f"{layer}.g_idx" in self._files:
            parts = [self.read(f"{layer}.{name}") for name in ("qweight", "qzeros", "scales", "g_idx")]
            return unpacking.gptq_float(*parts, zero_offset=self._format.zero_offset)
        raise UnsupportedModel(f"the quantised layer {layer} has groups whose size is not a multiple of 32 inputs")

    def _plain(self, name: str) -> Tensor:
        tensor = self.read(name)
        if tensor.dtype not in _BYTE_DTYPES:
            return tensor
        inverse = self._files.keys() & {f"{name}_scale_inv", f"{name}_scale"}
        if not inverse:
            raise UnsupportedModel(f"the quantised tensor {name} has no scales")
        return unpacking.scaled(tensor, self.read(inverse.pop()))

    def _part(self, layer: str, name: str) -> Tensor:
        if f"{layer}.{name}" not in self._files:
            raise UnsupportedModel(f"the quantised layer {layer} lacks its tensor {name}")
        return self.read(f"{layer}.{name}")

    def _optional(self, layer: str, name: str) -> Tensor | None:
        return self.read(f"{layer}.{name}") if f"{layer}.{name}" in self._files else None


class LazyTensor:
    """A tensor that is computed when transformers reads it, by `tensor[...]`."""

    def __init__(self, compute: Callable[[], Tensor]) -> None:
        self._compute = compute

    def __getitem__(self, key: EllipsisType) -> Tensor:
        """Compute and return the tensor. `key` has no effect."""
        return self._compute()


def read_configuration(folder: Path) -> dict[str, Any]:
    """Return the content of a folder's config.json; empty if there is none."""
    path = folder / "config.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found
