"""Computes the vectors of texts with a transformers model: one forward pass over all tokens of a batch, without padding."""

from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from inference_server.embedding import packing
from inference_server.embedding.packing import Packing
from inference_server.embedding.pooling import pooled
from inference_server.embedding.pooling_names import Pooling
from inference_server.errors import UnsupportedModel, first_line

# One vector for each text, in float32.
Vectors = list[NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class PackedText:
    """A text of a batch.

    Attributes:
        token_ids: Its tokens with control tokens, at least one.
        pooling: Its pooling.
        normalizes: Whether its vector has length 1.
        dimensions: Length of its vector: the first components, normalised again; None: the model's own.
    """

    token_ids: Items[int]
    pooling: Pooling
    normalizes: bool
    dimensions: int | None = None


class Encoder:
    """A model that turns token ids into vectors. Only one thread may use it at a time.

    Attributes:
        dimensions: Length of a vector.
        vocab_size: Valid token ids are smaller.
    """

    def __init__(self, model: Any, device: torch.device, first_position: int) -> None:
        """Create an encoder.

        Args:
            model: A transformers model without a head, whose attention is `packing.attend`.
            device: The model's device.
            first_position: Position of a text's first token.
        """
        self._model = model
        self._device = device
        self._first_position = first_position
        self.dimensions: int = model.config.hidden_size
        self.vocab_size: int = model.get_input_embeddings().num_embeddings

    @torch.inference_mode()
    def vectors(self, texts: Items[PackedText]) -> Vectors:
        """Return the vector of each text. A text's vector does not depend on the other texts, up to rounding."""
        # Ordered by length, texts of equal length are neighbours and attend in one call.
        order = sorted(range(len(texts)), key=lambda place: len(texts[place].token_ids))
        ordered = [texts[place] for place in order]
        row = Packing.of([len(text.token_ids) for text in ordered])
        hidden = self._hidden([text.token_ids for text in ordered], row)
        result = pooled(hidden, row.lengths, [text.pooling for text in ordered]).cpu()
        vectors: Vectors = [np.empty(0, np.float32)] * len(texts)
        for place, text, vector in zip(order, ordered, result, strict=True):
            vectors[place] = _finished(vector, text)
        return vectors

    @torch.inference_mode()
    def probe(self) -> None:
        """Compare two short texts in one batch with each text by itself, computed by transformers' own attention.

        Raises:
            UnsupportedModel: The results differ, or the model does not run: its attention is not the usual one.
        """
        texts = [[token % self.vocab_size for token in range(5, 5 + length)] for length in (3, 8)]
        try:
            together = self._hidden(texts, Packing.of([3, 8])).float()
            alone = torch.cat([self._alone(text) for text in texts]).float()
        except UnsupportedModel:
            raise
        except (TypeError, AttributeError, ValueError, RuntimeError) as error:
            raise UnsupportedModel(f"it does not run as an embedding model ({first_line(error)})") from error
        tolerance = 1e-3 if together.dtype is torch.float32 and self._model.dtype is torch.float32 else 0.1
        if (together - alone).abs().max() > tolerance * alone.abs().max():
            raise UnsupportedModel(
                "a text's vectors depend on the other texts of its batch: its attention is not supported"
            )

    def _hidden(self, texts: Items[Items[int]], row: Packing) -> Tensor:
        ids = torch.tensor([token for text in texts for token in text], device=self._device)
        positions = row.positions(self._first_position).to(self._device)
        output = self._model(
            input_ids=ids.unsqueeze(0), position_ids=positions.unsqueeze(0), use_cache=False, packing=row
        )
        hidden: Tensor = output.last_hidden_state[0]
        return hidden

    def _alone(self, text: list[int]) -> Tensor:
        self._model.set_attn_implementation("sdpa")
        try:
            ids = torch.tensor([text], device=self._device)
            hidden: Tensor = self._model(input_ids=ids, use_cache=False).last_hidden_state[0]
            return hidden
        finally:
            self._model.set_attn_implementation(packing.NAME)


def _finished(vector: Tensor, text: PackedText) -> NDArray[np.float32]:
    is_cut = text.dimensions is not None and text.dimensions < len(vector)
    if is_cut:
        vector = vector[: text.dimensions]
    if text.normalizes or is_cut:
        vector = F.normalize(vector, dim=0)
    numbers: NDArray[np.float32] = vector.numpy()
    return numbers
