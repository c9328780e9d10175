"""Quantises a model folder's linear layers in the formats of other projects, with the bit layouts of those projects."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

GROUP = 64
# Order in which AutoAWQ stores eight consecutive outputs in a word.
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
Layer = tuple[dict[str, Tensor], Tensor]  # the layer's tensors, and the weights that they represent


def quantize(folder: Path, quantization: dict[str, object], make: Callable[[Tensor], Layer]) -> dict[str, Tensor]:
    """Replace the linear layers of a folder's decoder with quantised ones.

    Args:
        folder: The folder of a model with one safetensors file.
        quantization: The new quantization_config.
        make: Returns tensors by the last part of their names, and the weights that they represent.

    Returns:
        The represented weights by the name of the layer.
    """
    tensors, represented = load_file(folder / "model.safetensors"), {}
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        layer = name.removesuffix(".weight")
        parts, represented[layer] = make(tensors.pop(name))
        tensors |= {f"{layer}.{part}": tensor.contiguous() for part, tensor in parts.items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": quantization}))
    return represented


def fp8_blocks(weight: Tensor, side: int = 32) -> Layer:
    """Return FP8 weights with a scale for each block."""
    rows, columns = (-(-size // side) for size in weight.shape)
    scales = torch.rand(rows, columns) / 64 + 1 / 64
    wide = scales.repeat_interleave(side, 0).repeat_interleave(side, 1)[: weight.shape[0], : weight.shape[1]]
    codes = (weight / wide).to(torch.float8_e4m3fn)
    return {"weight": codes, "weight_scale_inv": scales}, codes.float() * wide


def fp8_channels(weight: Tensor) -> Layer:
    """Return FP8 weights with a scale for each output."""
    scales = weight.abs().amax(1, keepdim=True) / 448
    codes = (weight / scales).to(torch.float8_e4m3fn)
    return {"weight": codes, "weight_scale": scales, "input_scale": torch.ones(1)}, codes.float() * scales


def fp8_tensor(weight: Tensor) -> Layer:
    """Return FP8 weights with one scale."""
    scale = (weight.abs().max() / 448).reshape(())
    codes = (weight / scale).to(torch.float8_e4m3fn)
    return {"weight": codes, "weight_scale": scale}, codes.float() * scale


def int8_channels(weight: Tensor) -> Layer:
    """Return int8 weights with a scale for each output."""
    scales = weight.abs().amax(1, keepdim=True) / 127
    codes = (weight / scales).round().to(torch.int8)
    return {"weight": codes, "weight_scale": scales}, codes.float() * scales


def awq(weight: Tensor) -> Layer:
    """Return AWQ's version gemm."""
    codes, zeros, scales, represented = _grouped(weight)
    order = np.arange(weight.shape[0]).reshape(-1, 8)[:, list(_AWQ_ORDER)].reshape(-1)
    parts = {"qweight": _words(codes.T[:, order]), "qzeros": _words(zeros.T[:, order]), "scales": scales.T.half()}
    return parts, represented


def gptq(weight: Tensor, *, offset: int = 1, permutation: Tensor | None = None) -> Layer:
    """Return GPTQ's format, with zero points minus `offset`. A permutation of the inputs mixes the groups."""
    permutation = torch.arange(weight.shape[1]) if permutation is None else permutation
    codes, zeros, scales, represented = _grouped(weight[:, permutation])
    inverse = permutation.argsort()
    return {
        "qweight": _words(codes[:, inverse]).T,
        "qzeros": _words(zeros.T) - offset * 0x11111111,
        "scales": scales.T.half(),
        "g_idx": (torch.arange(weight.shape[1]) // GROUP)[inverse].int(),
    }, represented[:, inverse]


def packed(weight: Tensor, *, is_symmetric: bool = False) -> Layer:
    """Return compressed-tensors' format pack-quantized with 4 bits."""
    codes, zeros, scales, represented = _grouped(weight, is_symmetric=is_symmetric)
    parts = {"weight_packed": _words(codes), "weight_scale": scales, "weight_shape": torch.tensor(weight.shape)}
    return parts | ({} if is_symmetric else {"weight_zero_point": _words(zeros.T).T}), represented


def _grouped(weight: Tensor, *, is_symmetric: bool = False) -> tuple[np.ndarray, np.ndarray, Tensor, Tensor]:
    """Return codes, zero points, scales and represented weights, for groups of GROUP inputs."""
    groups = weight.float().view(weight.shape[0], -1, GROUP)
    low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
    if is_symmetric:
        high = torch.maximum(high, -low)
        low = -high
    scales = ((high - low) / 15).half().float()
    zeros = torch.full_like(scales, 8) if is_symmetric else (-low / scales).round().clamp(0, 15)
    codes = ((groups / scales[..., None]).round() + zeros[..., None]).clamp(0, 15)
    represented = ((codes - zeros[..., None]) * scales[..., None]).view(weight.shape)
    return codes.view(weight.shape).numpy().astype(int), zeros.numpy().astype(int), scales, represented


def _words(codes: np.ndarray | Tensor) -> Tensor:
    """Pack eight codes of each row into an int32, the first one in the lowest bits."""
    fields = np.asarray(codes).astype(np.uint32).reshape(len(codes), -1, 8)
    words = (fields << np.arange(0, 32, 4, dtype=np.uint32)).sum(-1, dtype=np.uint32)
    return torch.from_numpy(words.view(np.int32).copy())
