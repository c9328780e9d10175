"""Unpacks the quantised weights of checkpoints: FP8, and 4-bit codes as AWQ, GPTQ and compressed-tensors pack them.

Sources of the formats: AutoAWQ's packing_utils (version "gemm"), AutoGPTQ's qlinear and GPTQModel's configuration
("gptq" and "gptq_v2"), compressed-tensors' compressors (pack-quantized, float-quantized, int-quantized), transformers'
FineGrainedFP8Config.
"""

import torch
from torch import Tensor

from inference_server.cpu.linear.integer_weights import Int4
from inference_server.linears.plain import GROUP

_ONE_IN_EACH_FIELD = 0x11111111
# Position among the eight 4-bit fields of a word at which AutoAWQ stores each of eight consecutive outputs.
_AWQ_FIELDS = (0, 4, 1, 5, 2, 6, 3, 7)


def scaled(codes: Tensor, scale: Tensor) -> Tensor:
    """Return FP8 or int8 weights multiplied by their scales, float32.

    Args:
        codes: (out_features, in_features) float8 or int8.
        scale: One number; one for each output, (out_features,) or (out_features, 1); or one for each block of equal
            size, (rows of blocks, columns of blocks).
    """
    scale = scale.float()
    if scale.dim() < 2:
        return codes.float() * (scale if scale.numel() == 1 else scale[:, None])
    rows, columns = codes.shape
    blocks = [-(-size // count) for size, count in zip(codes.shape, scale.shape, strict=True)]
    sides = [_block_side(size, block) for size, block in zip(codes.shape, blocks, strict=True)]
    whole = scale.repeat_interleave(sides[0], 0)[:rows].repeat_interleave(sides[1], 1)[:, :columns]
    return codes.float() * whole


def _block_side(size: int, at_least: int) -> int:
    """Return the blocks' side: the whole axis or 1, else the next power of two, since the last block may be smaller."""
    return at_least if at_least in (1, size) else 1 << (at_least - 1).bit_length()


def awq(qweight: Tensor, qzeros: Tensor, scales: Tensor) -> Int4:
    """Return the weights of an AWQ layer.

    Args:
        qweight: (in_features, out_features / 8) int32.
        qzeros: (groups, out_features / 8) int32.
        scales: (groups, out_features) float16.

    Raises:
        ValueError: The size of a group is not a multiple of GROUP inputs.
    """
    codes, zeros = (_fields(packed)[..., _AWQ_FIELDS].flatten(1) for packed in (qweight, qzeros))
    return _grouped(codes.T, zeros.T, scales.T)


def gptq(qweight: Tensor, qzeros: Tensor, scales: Tensor, groups: Tensor | None, *, zero_offset: int) -> Int4:
    """Return the weights of a GPTQ layer.

    Args:
        qweight: (in_features / 8, out_features) int32.
        qzeros: (groups, out_features / 8) int32.
        scales: (groups, out_features) float16.
        groups: (in_features,) int32, the group of each input; None: consecutive inputs form groups of equal size.
        zero_offset: Added to the stored zero points: 1 in the format "gptq", 0 in "gptq_v2".

    Raises:
        ValueError: The inputs of a group are not consecutive (desc_act: use `gptq_float`), or their number is not a
            multiple of GROUP.
    """
    if groups is not None and not is_consecutive(groups, len(scales)):
        raise ValueError("the inputs of a group are not consecutive")
    codes, zeros = _gptq_codes(qweight, qzeros, zero_offset)
    return _grouped(codes, zeros.T, scales.T)


def gptq_float(qweight: Tensor, qzeros: Tensor, scales: Tensor, groups: Tensor, *, zero_offset: int) -> Tensor:
    """Return the weights of a GPTQ layer whose groups may have any inputs, (out_features, in_features) float32.

    The parameters are those of `gptq`.
    """
    codes, zeros = _gptq_codes(qweight, qzeros, zero_offset)
    index = groups.long()
    return (codes.float() - zeros[index].T.float()) * scales.float()[index].T


def is_consecutive(groups: Tensor, num_groups: int) -> bool:
    """Return True if a layer's group numbers (in_features,) describe consecutive groups of equal size."""
    size = len(groups) // num_groups
    return bool((groups == torch.arange(len(groups)) // size).all())


def packed_int4(packed: Tensor, scales: Tensor, zeros: Tensor | None, in_features: int) -> Int4:
    """Return the weights of a layer in the format pack-quantized with 4 bits.

    Args:
        packed: (out_features, in_features / 8) int32, whose codes are the weights plus 8.
        scales: (out_features, groups), or (out_features, 1).
        zeros: (out_features / 8, groups) int32, packed as the weights are; None: the zero points are 8.
        in_features: The width before padding to whole words.

    Raises:
        ValueError: The size of a group is not a multiple of GROUP inputs.
    """
    codes = _fields(packed).flatten(1)[:, :in_features]
    points = torch.full_like(scales, 8, dtype=torch.uint8)
    if zeros is not None:
        points = _fields(zeros.T.contiguous()).flatten(1)[:, : len(packed)].T
    return _grouped(codes, points, scales)


def _gptq_codes(qweight: Tensor, qzeros: Tensor, zero_offset: int) -> tuple[Tensor, Tensor]:
    """Return codes (out_features, in_features) and zero points (groups, out_features), both uint8."""
    codes = _fields(qweight.T.contiguous()).flatten(1)
    # GPTQModel subtracts the offset from whole words, so a zero point of 0 borrows from the next field. Adding it to
    # whole words restores the field.
    words = (qzeros.long() + zero_offset * _ONE_IN_EACH_FIELD) & 0xFFFFFFFF
    return codes, _fields(words).flatten(1)


def _fields(words: Tensor) -> Tensor:
    """Return the eight 4-bit fields of each word, the lowest first, (*words.shape, 8) uint8."""
    shifts = torch.arange(0, 32, 4, dtype=torch.int32)
    return ((words[..., None] >> shifts) & 15).to(torch.uint8)


def _grouped(codes: Tensor, zeros: Tensor, scales: Tensor) -> Int4:
    """Return weights (code - zero) * scale, with the scales repeated for groups of GROUP inputs.

    Args:
        codes: (out_features, in_features) uint8.
        zeros: (out_features, groups) uint8.
        scales: (out_features, groups) float.

    Raises:
        ValueError: The size of a group is not a multiple of GROUP inputs.
    """
    size = codes.shape[1] // scales.shape[1]
    if size % GROUP:
        raise ValueError(f"its groups have {size} inputs, which is not a multiple of {GROUP}")
    repeats = size // GROUP
    scale = scales.half().float()
    minima = -zeros.float() * scale
    return Int4(
        codes.contiguous(), scale.repeat_interleave(repeats, 1), minima.half().float().repeat_interleave(repeats, 1)
    )
