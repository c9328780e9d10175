"""Computes the vectors of texts: one forward pass over all tokens of a batch, without padding."""

from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from inference_server.embedding.packing import Packing
from inference_server.embedding.pooling import pooled
from inference_server.embedding.pooling_names import Pooling

# One vector for each text, in float32.
Vectors = list[NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class PackedText:
    """A tokenised text, with the rules for its vector.

    Attributes:
        token_ids: Token ids of the text, including control tokens; at least one.
        pooling: Method that combines the tokens' vectors into one.
        normalizes: True if the vector is scaled to length 1.
        dimensions: Number of components to keep, from the first one; None: all components. A shortened vector is always
            scaled to length 1.
    """

    token_ids: Items[int]
    pooling: Pooling
    normalizes: bool
    dimensions: int | None = None


class TokenModel(Protocol):
    """A model that computes a vector for each token."""

    @property
    def dimensions(self) -> int:
        """Number of components of a vector."""

    @property
    def vocab_size(self) -> int:
        """Size of the vocabulary: valid token ids are smaller."""

    @property
    def num_bytes(self) -> int:
        """Memory of the weights, in bytes."""

    def hidden(self, texts: Items[Items[int]], row: Packing) -> Tensor:
        """Return the vectors of all tokens, of shape (num_tokens, dimensions).

        Args:
            texts: Token ids of each text, in ascending order of their lengths.
            row: The packing of texts with these lengths.
        """

    def probe(self) -> None:
        """Check that the model computes packed texts correctly. Raises UnsupportedModel if it does not."""


class Encoder:
    """A model that turns token ids into vectors. Only one thread may use it at a time.

    Attributes:
        dimensions: Number of components of a vector.
        vocab_size: Size of the vocabulary: valid token ids are smaller.
    """

    def __init__(self, model: TokenModel) -> None:
        """Create an encoder. `model`: computes the vectors of tokens."""
        self._model = model
        self.dimensions = model.dimensions
        self.vocab_size = model.vocab_size

    @torch.inference_mode()
    def vectors(self, texts: Items[PackedText], on_layer: Callable[[], None] = lambda: None) -> Vectors:
        """Return one vector for each text, in their order. A vector does not depend on other texts, up to rounding.

        `on_layer` is called after the attention of each layer of the model.
        """
        # Sorting puts texts of equal length side by side, so that one call computes their attention.
        order = sorted(range(len(texts)), key=lambda place: len(texts[place].token_ids))
        ordered = [texts[place] for place in order]
        row = Packing.of([len(text.token_ids) for text in ordered], on_layer)
        hidden = self._model.hidden([text.token_ids for text in ordered], row)
        result = pooled(hidden, row.lengths, [text.pooling for text in ordered]).cpu()
        vectors: Vectors = [np.empty(0, np.float32)] * len(texts)
        for place, text, vector in zip(order, ordered, result, strict=True):
            vectors[place] = _finished(vector, text)
        return vectors


def _finished(vector: Tensor, text: PackedText) -> NDArray[np.float32]:
    is_cut = text.dimensions is not None and text.dimensions < len(vector)
    if is_cut:
        vector = vector[: text.dimensions]
    if text.normalizes or is_cut:
        vector = F.normalize(vector, dim=0)
    numbers: NDArray[np.float32] = vector.numpy()
    return numbers
