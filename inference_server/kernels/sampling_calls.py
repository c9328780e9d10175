"""Runs the kernel `sample_rows` from Python: builds the rows' records, and reads the results."""

import math
from collections.abc import Sequence as Items
from struct import Struct
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from inference_server.kernels.jit.arguments import BLOCK_BYTES
from inference_server.kernels.jit.kernel import Kernel, kernel
from inference_server.kernels.sampling.record import BLOCK, LARGEST, RECORD_WORDS, TOKEN, TOTAL

_RECORD = Struct("9q4dQq2d5q")  # the words of a record, see record.py
_BLOCK = Struct(f"7q{BLOCK_BYTES - 56}x")
_PICOSECONDS_PER_LOGIT = 300  # approximate time on one thread
_ENOUGH_NS = 50_000  # one more thread is used for each such duration on one thread


class Edits(NamedTuple):
    """Changes of a row's logits before the kernel samples: addresses and strengths.

    Attributes:
        tokens: Address of the distinct tokens of prompt and reply, int32 of shape (num_tokens,).
        counts: Address of the number of occurrences of each in the reply, float32 of the same shape.
        unchanged: Address to which the kernel copies the logits of these tokens before it changes them, float32 of the
            same shape.
        num_tokens: Number of these tokens; 0 for no penalties.
        allowed: Address of the mask of allowed tokens, uint8 of shape (vocab_size,); 0 to allow all tokens.
        biased: Address of the tokens to whose logits a bias is added, int32 of shape (num_biased,); 0 for none.
        biases: Address of the numbers to add, float32 of shape (num_biased,).
        num_biased: Number of tokens with a bias.
        repetition: The repetition penalty, above 0.
        frequency: The frequency penalty.
        presence: The presence penalty.
    """

    tokens: int = 0
    counts: int = 0
    unchanged: int = 0
    num_tokens: int = 0
    allowed: int = 0
    biased: int = 0
    biases: int = 0
    num_biased: int = 0
    repetition: float = 1.0
    frequency: float = 0.0
    presence: float = 0.0


class Draw(NamedTuple):
    """Parameters with which the kernel samples a row.

    Attributes:
        temperature: Temperature; 0 selects the token with the largest logit.
        key: 64 bits for the noise.
        top_k: Number of likeliest tokens that are kept; 0 for no limit.
        top_p: Share of the mass that is kept; 1 or more for no limit.
        depth: The smallest kept logit minus the largest logit, at most 0; -infinity for no limit.
    """

    temperature: float
    key: int = 0
    top_k: int = 0
    top_p: float = 1.0
    depth: float = -math.inf


class Results(NamedTuple):
    """Results of the rows, in order.

    Attributes:
        tokens: Sampled token ids, or -1 if rounding could change the token.
        largest: Largest logits after the edits; NaN if a logit is NaN.
        totals: Sums of exp(logit - largest) over all tokens; undefined for rows without log probabilities.
    """

    tokens: list[int]
    largest: list[float]
    totals: list[float]


NO_EDITS, GREEDY = Edits(), Draw(0.0)


def sampling_kernel(logits: Tensor) -> Kernel | None:
    """Return the kernel for logits of shape (num_rows, vocab_size); None if torch's operations must replace it."""
    # The distance between two rows may be larger than the vocabulary: a linear layer's outputs fill whole panels.
    fits = logits.device.type == "cpu" and logits.dtype is torch.float32 and logits.stride(-1) == 1
    return kernel("sample_rows") if fits and logits.shape[-1] >= BLOCK else None


def row_record(logits: int, edits: Edits, draw: Draw, top: int = 0, top_size: int = 0) -> bytes:
    """Return the record of a row.

    Args:
        logits: Address of the row's logits, float32.
        edits: Changes of the logits, applied in place.
        draw: Parameters of the sampling.
        top: Address of `top_size` entries for the likeliest tokens; 0 without log probabilities. An entry is a logit,
            float32, and a token id, int32, which is -1 if no finite logit is left.
        top_size: Number of entries.
    """
    return _RECORD.pack(logits, *edits, *draw, top, top_size, 0, 0, 0)


def sample_rows(function: Kernel, records: Items[bytes], vocab_size: int, hashes: Tensor) -> Results:
    """Sample a token for each row.

    Args:
        function: From `sampling_kernel`.
        records: From `row_record`.
        vocab_size: Number of logits of a row, at least 64.
        hashes: Hashes of the token ids (gumbel.token_hashes), int32 of shape (2, vocab_size).
    """
    words = np.frombuffer(bytearray(b"".join(records)), np.int64).reshape(-1, RECORD_WORDS)
    block = _BLOCK.pack(0, 0, 0, words.ctypes.data, len(records), vocab_size, hashes.data_ptr())
    nanoseconds = len(records) * vocab_size * _PICOSECONDS_PER_LOGIT // 1000
    function.run(block, min(len(records), 1 + nanoseconds // _ENOUGH_NS), nanoseconds)
    floats = words.view(np.float32)
    return Results(words[:, TOKEN].tolist(), floats[:, 2 * LARGEST].tolist(), floats[:, 2 * TOTAL].tolist())
