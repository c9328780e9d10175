"""Computes the random numbers for Gumbel-max sampling: each depends on seed, position and token id only.

The token with the largest sum of logit and Gumbel noise is a sample from the softmax of the logits. Sources: Gumbel,
1954; Maddison, Tarlow, Minka: A* sampling, 2014. A rounding error in the logits changes the sample only if the two
largest sums differ by less than this error.

The numbers are hashes, so there is no state, and any part of them can be computed separately. Does not depend on
logits.
"""

import functools
from collections.abc import Iterable
from collections.abc import Sequence as Items

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_MASK64 = 2**64 - 1
_GOLDEN_GAMMA = 0x9E3779B97F4A7C15
_FIRST_FACTOR, _SECOND_FACTOR = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
# Differs from the constant for positions. Otherwise some keys of seed 0 would equal the bits of a token. From Steele,
# Vigna: Computationally easy, spectrally good multipliers for congruential generators, 2021.
_TOKEN_GAMMA = 0xD1342543DE82EF95
_FACTOR_32 = 0x21F0AAAD  # from lowbias32, https://github.com/skeeto/hash-prospector
_LARGEST_BELOW_ONE = 1.0 - 2.0**-24


def key(seed: int, position: int) -> int:
    """Return 64 random bits for the sample at a position: SplitMix64 with a jump to `position`.

    The seed is mixed first, so that the keys of neighbouring seeds are independent. Source: Steele, Lea, Flood: Fast
    splittable pseudorandom number generators, 2014.
    """
    return _mix64(_mix64(seed) + (position + 1) * _GOLDEN_GAMMA)


class Keys:
    """The keys of a batch, computed together: every row equals `key(seed, position)` of its seed and position."""

    def __init__(self, seeds: Items[int], positions: Items[int]) -> None:
        """Start at `positions`, one for each row. `seeds`: one for each row, below 2**64."""
        jumps = (np.array(positions, np.uint64) + np.uint64(1)) * np.uint64(_GOLDEN_GAMMA)
        self._states = _mix64_of_all(np.array(seeds, np.uint64)) + jumps

    def take(self) -> NDArray[np.int32]:
        """Return the keys as int32 of shape (num_rows, 2), low half first, and advance every row by one position."""
        keys = _mix64_of_all(self._states)
        self._states += np.uint64(_GOLDEN_GAMMA)
        return keys.astype("<u8", copy=False).view(np.int32).reshape(-1, 2)

    def take_integers(self) -> list[int]:
        """Return the keys as integers, and advance every row by one position."""
        keys: list[int] = self.take().view(np.uint64)[:, 0].tolist()
        return keys


def uniform(keys: Iterable[int], token_ids: Tensor) -> Tensor:
    """Return random numbers in (0, 1], float32 of shape (num_rows, n).

    Each number has 32 random bits, of which float32 keeps 24 from the first nonzero bit on. Small numbers, which decide
    the sample, therefore have a fine resolution.

    Args:
        keys: A key for each row.
        token_ids: int64 of shape (num_rows, n).
    """
    return _uniform(keys, *_halves(token_ids))


def uniform_of_some(keys: Tensor, token_ids: Tensor, vocab_size: int) -> Tensor:
    """Return the same as `uniform`, for keys on the device. Needs fewer operations, but hashes of the whole vocabulary.

    Args:
        keys: int32 of shape (num_rows, 2), as in `Keys`.
        token_ids: int64 of shape (num_rows, n) below `vocab_size`.
        vocab_size: Number of tokens.
    """
    hashes = token_hashes(vocab_size, token_ids.device)
    return _uniform(keys, hashes[0][token_ids], hashes[1][token_ids])


def uniform_of_all(keys: Iterable[int] | Tensor, vocab_size: int, device: torch.device) -> Tensor:
    """Return the random numbers of all tokens of a vocabulary: float32 of shape (num_rows, vocab_size).

    `keys`: a key for each row, or int32 of shape (num_rows, 2) on the device, as in `Keys`.
    """
    hashes = token_hashes(vocab_size, device)
    return _uniform(keys, hashes[0], hashes[1])


def gumbel(uniforms: Tensor) -> Tensor:
    """Return -log(-log(1 - u)), standard Gumbel noise between -2.82 and 22.88. It is at most -log(u)."""
    return uniforms.clamp(max=_LARGEST_BELOW_ONE).neg_().log1p_().neg_().log_().neg_()


def _uniform(keys: Iterable[int] | Tensor, first: Tensor, second: Tensor) -> Tensor:
    if isinstance(keys, Tensor):
        factors = keys
    else:
        factors = torch.tensor([[_signed32(key), _signed32(key >> 32)] for key in keys], dtype=torch.int32)
        factors = factors.to(first.device)
    # Multilinear hashing (Carter, Wegman: Universal classes of hash functions, 1979) of 64 bits of the token with 64 of
    # the key produces well-distributed high bits. A round as in MurmurHash3's finaliser spreads them to all bits.
    bits = torch.mul(first, factors[:, :1]).addcmul_(second, factors[:, 1:])
    shifted = bits >> 16
    bits.add_(shifted).mul_(_FACTOR_32)
    numbers = shifted.view(torch.float32).copy_(bits.view(torch.uint32))  # reuses the memory of `shifted`
    return torch.add(torch.tensor(2.0**-33), numbers, alpha=2.0**-32, out=numbers)


@functools.lru_cache(maxsize=8)
def token_hashes(vocab_size: int, device: torch.device) -> Tensor:
    """Return a 64-bit hash of each token id as two halves, int32 of shape (2, vocab_size)."""
    with torch.inference_mode(False):  # cached tensors are used in later calls, also outside inference mode
        return torch.stack(_halves(torch.arange(vocab_size, device=device)))


def _halves(token_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Hash each token id to 64 bits as in SplitMix64. Returns the halves as int32; the second half is made odd."""
    mixed = (token_ids + 1) * _signed64(_TOKEN_GAMMA)
    mixed = (mixed ^ (mixed >> 30 & (1 << 34) - 1)) * _signed64(_FIRST_FACTOR)
    mixed = (mixed ^ (mixed >> 27 & (1 << 37) - 1)) * _signed64(_SECOND_FACTOR)
    mixed = mixed ^ (mixed >> 31 & (1 << 33) - 1)
    return (mixed >> 32).int(), (mixed << 32 >> 32 | 1).int()


def _mix64(value: int) -> int:
    value &= _MASK64
    value = ((value ^ (value >> 30)) * _FIRST_FACTOR) & _MASK64
    value = ((value ^ (value >> 27)) * _SECOND_FACTOR) & _MASK64
    return value ^ (value >> 31)


def _mix64_of_all(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    values = (values ^ (values >> np.uint64(30))) * np.uint64(_FIRST_FACTOR)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(_SECOND_FACTOR)
    return values ^ (values >> np.uint64(31))


def _signed32(value: int) -> int:
    return ((value + 2**31) & (2**32 - 1)) - 2**31


def _signed64(value: int) -> int:
    return ((value + 2**63) & _MASK64) - 2**63
