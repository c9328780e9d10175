"""Number formats of tensors in GGUF files: the sizes of their blocks, and the computation of their weights.

A row consists of blocks. Computed weights are bit-identical to those of gguf.dequantize. Q4_0, Q4_1 and Q4_K can keep
their codes as this server's int4 weights: groups of 32 codes with a scale and a minimum.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from inference_server.cpu.linear.integer_weights import Int4Pairs
from tailrace_shared.config_errors import ConfigurationError

Decode = Callable[[Tensor], Tensor]  # (num_blocks, block_bytes) uint8 to (num_blocks, block_weights) float32


@dataclass(frozen=True, slots=True)
class TensorFormat:
    """A number format.

    Attributes:
        name: GGML's name, for example "Q4_K".
        block_weights: Number of weights in a block.
        block_bytes: Size of a block in bytes.
        decode: Computes the weights of blocks.
        bits: Bits of a weight's code; 16 and 32 for float formats.
        int4: Converts rows of bytes to int4 weights with the same codes; None if this server rounds the weights.
    """

    name: str
    block_weights: int
    block_bytes: int
    decode: Decode
    bits: int
    int4: "Callable[[Tensor], Int4Pairs] | None" = None

    def row_bytes(self, num_weights: int) -> int:
        """Return the size in bytes of a row of `num_weights` weights."""
        return num_weights // self.block_weights * self.block_bytes

    def weights(self, rows: Tensor) -> Tensor:
        """Return the weights of rows of bytes, (num_rows, num_weights) float32."""
        return self.decode(rows.view(-1, self.block_bytes)).view(rows.shape[0], -1)


def _halves(blocks: Tensor, start: int, count: int = 1) -> Tensor:
    """Return the float16 numbers that begin at byte `start` of each block, (num_blocks, count) float32."""
    return blocks[:, start : start + 2 * count].contiguous().view(torch.float16).float()


def _nibbles(codes: Tensor) -> Tensor:
    """Return 4-bit codes, (…, 2, num_bytes) uint8: the low halves of all bytes, then the high halves."""
    return torch.stack([codes & 15, codes >> 4], dim=-2)


def _scaled(codes: Tensor, scales: Tensor, minima: Tensor | None = None) -> Tensor:
    """Return codes * scales + minima, float32. Converts codes first, because mixed dtypes are slow in torch."""
    weights = codes.float().mul_(scales)
    return weights if minima is None else weights.add_(minima)


def _q4_0(blocks: Tensor) -> Tensor:
    codes = _nibbles(blocks[:, 2:].contiguous()).view(-1, 32).view(torch.int8).sub_(8)
    return _scaled(codes, _halves(blocks, 0))


def _q4_1(blocks: Tensor) -> Tensor:
    return _scaled(_nibbles(blocks[:, 4:].contiguous()).view(-1, 32), _halves(blocks, 0), _halves(blocks, 2))


def _fifth_bits(blocks: Tensor, start: int) -> Tensor:
    """Return the highest bits of a block's 32 codes of 5 bits, (num_blocks, 32) uint8, 0 or 16.

    The bits are in the 4 bytes from byte `start` on.
    """
    bits = blocks[:, start : start + 4, None] >> torch.arange(8, dtype=torch.uint8)
    return (bits & 1).view(-1, 32) << 4


def _q5_0(blocks: Tensor) -> Tensor:
    codes = _nibbles(blocks[:, 6:].contiguous()).view(-1, 32) | _fifth_bits(blocks, 2)
    return _scaled(codes.view(torch.int8) - 16, _halves(blocks, 0))


def _q5_1(blocks: Tensor) -> Tensor:
    codes = _nibbles(blocks[:, 8:].contiguous()).view(-1, 32) | _fifth_bits(blocks, 4)
    return _scaled(codes, _halves(blocks, 0), _halves(blocks, 2))


def _q8_0(blocks: Tensor) -> Tensor:
    return _scaled(blocks[:, 2:].view(torch.int8), _halves(blocks, 0))


def _k_factors(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Return scales and minima (to be subtracted) of the 8 groups of each block, (num_blocks, 8) float32.

    The 12 bytes contain a scale and a minimum of 6 bits for each group. The block's two float16 numbers multiply them.
    """
    packed = blocks[:, 4:16]
    first, second, third = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = torch.cat([first & 63, (third & 15) | ((first >> 6) << 4)], dim=1)
    minima = torch.cat([second & 63, (third >> 4) | ((second >> 6) << 4)], dim=1)
    return _halves(blocks, 0) * scales, _halves(blocks, 2) * minima


def _q4_k(blocks: Tensor) -> Tensor:
    scales, minima = _k_factors(blocks)
    codes = _nibbles(blocks[:, 16:].reshape(-1, 4, 32)).view(-1, 8, 32)
    return codes.float().mul_(scales[..., None]).sub_(minima[..., None]).view(-1, 256)


def _q5_k(blocks: Tensor) -> Tensor:
    scales, minima = _k_factors(blocks)
    codes = _nibbles(blocks[:, 48:].reshape(-1, 4, 32)).view(-1, 8, 32)
    high = blocks[:, None, 16:48] >> torch.arange(8, dtype=torch.uint8)[:, None]
    codes |= (high & 1) << 4
    return codes.float().mul_(scales[..., None]).sub_(minima[..., None]).view(-1, 256)


def _q6_k(blocks: Tensor) -> Tensor:
    low = _nibbles(blocks[:, :128].reshape(-1, 2, 64))  # (num_blocks, half, low or high, 64)
    high = blocks[:, 128:192].reshape(-1, 2, 1, 32) >> torch.tensor([0, 2, 4, 6], dtype=torch.uint8)[:, None]
    codes = low.view(-1, 2, 4, 32) | ((high & 3) << 4)
    scales = _halves(blocks, 208) * blocks[:, 192:208].view(torch.int8)
    return _scaled((codes.view(-1, 16, 16).view(torch.int8) - 32), scales[..., None]).view(-1, 256)


def _of_float(dtype: torch.dtype) -> Decode:
    return lambda blocks: blocks.view(dtype).float()


def _pairs(codes: Tensor, scales: Tensor, minima: Tensor) -> Int4Pairs:
    return Int4Pairs(codes, scales.half(), minima.half())


def _pairs_of_q4_0(rows: Tensor) -> Int4Pairs:
    blocks = rows.view(rows.shape[0], -1, 18)
    scales = blocks[..., :2].contiguous().view(torch.float16)[..., 0]
    return _pairs(blocks[..., 2:], scales, scales.float() * -8)


def _pairs_of_q4_1(rows: Tensor) -> Int4Pairs:
    blocks = rows.view(rows.shape[0], -1, 20)
    factors = blocks[..., :4].contiguous().view(torch.float16)
    return _pairs(blocks[..., 4:], factors[..., 0], factors[..., 1])


def _pairs_of_q4_k(rows: Tensor) -> Int4Pairs:
    blocks = rows.view(-1, 144)
    scales, minima = _k_factors(blocks)
    codes = _nibbles(blocks[:, 16:].reshape(-1, 4, 32))  # (num_blocks, 4, 2, 32)
    codes = codes[..., :16] | (codes[..., 16:] << 4)
    groups = (rows.shape[0], -1)
    return _pairs(codes.view(*groups, 16), scales.view(groups), (-minima).view(groups))


_FORMATS = {
    0: TensorFormat("F32", 1, 4, _of_float(torch.float32), 32),
    1: TensorFormat("F16", 1, 2, _of_float(torch.float16), 16),
    2: TensorFormat("Q4_0", 32, 18, _q4_0, 4, _pairs_of_q4_0),
    3: TensorFormat("Q4_1", 32, 20, _q4_1, 4, _pairs_of_q4_1),
    6: TensorFormat("Q5_0", 32, 22, _q5_0, 5),
    7: TensorFormat("Q5_1", 32, 24, _q5_1, 5),
    8: TensorFormat("Q8_0", 32, 34, _q8_0, 8),
    12: TensorFormat("Q4_K", 256, 144, _q4_k, 4, _pairs_of_q4_k),
    13: TensorFormat("Q5_K", 256, 176, _q5_k, 5),
    14: TensorFormat("Q6_K", 256, 210, _q6_k, 6),
    30: TensorFormat("BF16", 1, 2, _of_float(torch.bfloat16), 16),
}


# Bits of a code in formats that the gguf package decodes: Q2_K and Q3_K. Its other formats count as 8 bits.
_FEW_BITS = {10: 2, 11: 3}


@cache
def format_of(type_id: int) -> TensorFormat:
    """Return the format with GGML's number `type_id`. The gguf package decodes the rarer formats, which is slower.

    Raises:
        ConfigurationError: Neither this server nor the gguf package reads the format.
    """
    return _FORMATS.get(type_id) or _format_of_gguf(type_id)


def _format_of_gguf(type_id: int) -> TensorFormat:
    import gguf

    try:
        kind = gguf.GGMLQuantizationType(type_id)
        block_weights, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        gguf.dequantize(np.zeros((1, block_bytes), np.uint8), kind)
    except (ValueError, KeyError, NotImplementedError):
        readable = ", ".join(each.name for each in _FORMATS.values())
        name = next((each.name for each in gguf.GGMLQuantizationType if each == type_id), f"number {type_id}")
        raise ConfigurationError(
            f"a tensor has the number format {name}, which this server does not read: use a file in one of {readable}"
        ) from None

    def decode(blocks: Tensor) -> Tensor:
        return torch.from_numpy(gguf.dequantize(blocks.numpy(), kind))

    return TensorFormat(kind.name, block_weights, block_bytes, decode, _FEW_BITS.get(type_id, 8))
