"""Converts the weights of linear layers to integer codes.

Codes of bitsandbytes, of 4-bit checkpoints and of GGUF files are used as they are. Other weights are rounded.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from inference_server.linears.plain import GROUP


@dataclass(frozen=True, slots=True)
class Int8:
    """Weights in int8 with one scale for each output: weight = codes * scales[:, None]."""

    codes: Tensor  # (out_features, in_features) int8
    scales: Tensor  # (out_features,) float32

    def dequantize(self) -> Tensor:
        """Return the weights, (out_features, in_features) float32."""
        return self.codes * self.scales[:, None]


@dataclass(frozen=True, slots=True)
class Int4:
    """Weights in int4 with a scale and a minimum for each group of inputs: weight = codes * scale + minimum."""

    codes: Tensor  # (out_features, in_features) uint8, 0 to 15
    scales: Tensor  # (out_features, in_features / group) float32, values that float16 represents exactly
    minima: Tensor  # same shape, dtype and precision as scales
    group: int = GROUP

    def dequantize(self) -> Tensor:
        """Return the weights, (out_features, in_features) float32."""
        groups = self.codes.view(*self.scales.shape, self.group).float()
        return (groups * self.scales[..., None] + self.minima[..., None]).view(self.codes.shape)


@dataclass(frozen=True, slots=True)
class Int4Pairs:
    """Int4 weights as GGUF files contain them: two codes in a byte."""

    pairs: Tensor  # (out_features, groups, 16) uint8; byte i of a group has input i in its low half, i + 16 in its high half
    scales: Tensor  # (out_features, groups) float16
    minima: Tensor  # same shape and dtype as scales

    @classmethod
    def of(cls, weight: Int4) -> "Int4Pairs":
        """Pack two codes into each byte. The groups of `weight` have 32 inputs."""
        halves = weight.codes.view(*weight.scales.shape, 2, GROUP // 2)
        return cls(halves[..., 0, :] | (halves[..., 1, :] << 4), weight.scales.half(), weight.minima.half())

    def dequantize(self) -> Tensor:
        """Return the weights, (out_features, in_features) float32."""
        codes = torch.cat([self.pairs & 15, self.pairs >> 4], dim=-1)
        return (codes * self.scales[..., None].float() + self.minima[..., None].float()).flatten(1)


def int8_weights(linears: list[Any]) -> Int8:
    """Return the layers' weights, concatenated: bitsandbytes' own integers, or rounded with one scale per output."""
    parts = [_int8_weights(linear) for linear in linears]
    return Int8(torch.cat([part.codes for part in parts]), torch.cat([part.scales for part in parts]))


def _int8_weights(linear: Any) -> Int8:
    state = getattr(linear, "state", None)
    if (
        state is not None
    ):  # Linear8bitLt of bitsandbytes: before its first call, the weight and not the state has integers and row maxima
        codes = state.CB if state.CB is not None else linear.weight.CB
        maxima = state.SCB if state.SCB is not None else linear.weight.SCB
        return Int8(codes.contiguous(), maxima.float().reshape(-1) / 127)
    return rounded_to_int8(linear.weight.detach().float())


def rounded_to_int8(weight: Tensor) -> Int8:
    """Return weights, (out_features, in_features) float32, rounded with one scale for each output."""
    scales = (weight.abs().amax(dim=1) / 127).clamp_min(torch.finfo(torch.float32).tiny)
    return Int8((weight / scales[:, None]).round_().to(torch.int8), scales)


def rounded_like_bitsandbytes(weight: Tensor) -> Int8:
    """Return weights, (out_features, in_features) float32, with the integers of bitsandbytes, which rounds to float16 first."""
    weight = weight.half().float()
    maxima = weight.abs().amax(dim=1)
    factors = (127.0 / maxima).masked_fill_(maxima == 0, 0)
    return Int8((weight * factors[:, None]).round_().to(torch.int8), maxima / 127)


def int4_weights(linears: list[Any]) -> Int4:
    """Return the layers' weights, concatenated, as codes in groups of 32 inputs.

    Weights that come from GGUF's format Q4_1 are reproduced exactly: it maps the minimum of each group to 0 and the
    maximum to 15, so scale and minimum follow from the group's range. A layer whose checkpoint has 4-bit codes keeps
    them: its attribute `stored_int4` returns them. Other weights are rounded to the nearest code.
    """
    parts = [_int4_weights(linear) for linear in linears]
    if len(parts) == 1:
        return parts[0]
    codes, scales, minima = (
        torch.cat(each) for each in zip(*((p.codes, p.scales, p.minima) for p in parts), strict=True)
    )
    return Int4(codes, scales, minima)


def _int4_weights(linear: Any) -> Int4:
    stored: Callable[[], Int4 | None] | None = getattr(linear, "stored_int4", None)
    if stored is not None and (codes := stored()) is not None:
        return codes
    return rounded_to_int4(linear.weight.detach().float())


def rounded_to_int4(weight: Tensor) -> Int4:
    """Return weights, (out_features, in_features) float32, rounded to codes in groups of 32 inputs."""
    groups = weight.view(weight.shape[0], -1, GROUP)
    minima, maxima = groups.aminmax(dim=-1)
    minima = minima.half().float()
    scales = ((maxima - minima) / 15).half().float()
    steps = scales.clamp_min(torch.finfo(torch.float32).tiny)[..., None]
    codes = ((groups - minima[..., None]) / steps).round_().clamp_(0, 15).to(torch.uint8)
    return Int4(codes.view(weight.shape), scales, minima)
