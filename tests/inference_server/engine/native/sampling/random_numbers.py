"""Random numbers of the sampler, and a measure of their distribution."""

import math

import torch

from inference_server.engine.native.gumbel import key, uniform_of_all

VOCAB_SIZE = 1000  # above the length of the shortlist


def noise(pairs, vocab_size=VOCAB_SIZE):
    """Return the uniform random numbers of pairs (seed, position), of shape (len(pairs), vocab_size)."""
    return uniform_of_all([key(*pair) for pair in pairs], vocab_size, torch.device("cpu"))


def excess(counts, expected):
    """Return by how many standard deviations chi-square exceeds its mean."""
    degrees = len(counts) - 1
    return float(((counts - expected) ** 2 / expected).sum() - degrees) / math.sqrt(2 * degrees)
