"""One loaded model and its KV cache: token ids in, logits out. Runs on the engine's thread only.

Knows slots, positions and token ids; knows nothing of requests, text or sampling.
"""

from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from inference_server.attention import DecodeBatch, PrefillBatch, Segment
from inference_server.errors import UnsupportedModel
from inference_server.kv_cache import KVCache


@dataclass(frozen=True, slots=True)
class PromptPiece:
    """Consecutive prompt tokens of the sequence in `slot`; the first has the position `start`."""

    slot: int
    start: int
    token_ids: Items[int]
    wants_logits: bool  # of its last token


@dataclass(frozen=True, slots=True)
class NextToken:
    """The newest token of the sequence in `slot`, at `position`."""

    slot: int
    position: int
    token_id: int


class ModelRunner:
    def __init__(self, model: Any, *, num_slots: int, max_len: int) -> None:
        """`model`: a causal language model of transformers, loaded with attention.NAME."""
        self._model = model.eval()
        self.device: torch.device = model.device
        self.vocab_size: int = model.get_output_embeddings().weight.shape[0]
        self.cache = KVCache(num_slots=num_slots, max_len=max_len, device=self.device)

    @torch.inference_mode()
    def probe(self, slot: int = 0) -> None:
        """One token through every layer, in a slot that nobody uses; the first time, this also allocates the cache.

        Raises UnsupportedModel if the model attends in a way that would be got wrong here: layers that keep no keys
        (state space, shared layers), chunked attention, windows that are told to transformers' masks alone.
        """
        batch = PrefillBatch(self.cache, [Segment(slot, 0, 1)])
        self._forward([[0]], [[0]], [0], batch)
        config = self._model.config.get_text_config()
        layers = range(config.num_hidden_layers)
        if set(batch.windows) != set(layers):
            raise UnsupportedModel(f"only {len(batch.windows)} of its {len(layers)} layers keep keys and values")
        types = getattr(config, "layer_types", None) or ["full_attention"] * len(layers)
        if strange := sorted(set(types) - {"full_attention", "sliding_attention"}):
            raise UnsupportedModel(f"some of its layers are of type {strange[0]}")
        if getattr(config, "attention_chunk_size", None):
            raise UnsupportedModel("its attention is chunked")
        if any(types[layer] == "sliding_attention" and batch.windows[layer] is None for layer in layers):
            raise UnsupportedModel("its sliding windows are not told to the attention")

    @torch.inference_mode()
    def prefill(self, pieces: Items[PromptPiece]) -> Tensor:
        """Compute prompt tokens. Returns logits (num_pieces_that_want_them, vocab_size) float32, in order."""
        batch = PrefillBatch(self.cache, [Segment(piece.slot, piece.start, len(piece.token_ids)) for piece in pieces])
        token_ids: list[int] = []
        positions: list[int] = []
        wanted: list[int] = []
        for piece in pieces:
            token_ids += piece.token_ids
            positions += range(piece.start, piece.start + len(piece.token_ids))
            if piece.wants_logits:
                wanted.append(len(token_ids) - 1)
        return self._forward([token_ids], [positions], wanted, batch)[0]

    @torch.inference_mode()
    def decode(self, tokens: Items[NextToken]) -> Tensor:
        """One token each of several sequences, ordered by slot. Returns logits (num_seqs, vocab_size) float32."""
        slots = [token.slot for token in tokens]
        positions = [token.position for token in tokens]
        batch = DecodeBatch(self.cache, slots, positions)
        return self._forward([[token.token_id] for token in tokens], [[p] for p in positions], [0], batch)[:, 0]

    def _forward(
        self,
        token_ids: list[list[int]],
        positions: list[list[int]],
        wanted: list[int],
        batch: PrefillBatch | DecodeBatch,
    ) -> Tensor:
        """Logits (num_rows, len(wanted), vocab_size) float32 of the columns `wanted`."""
        logits: Tensor = self._model(
            input_ids=torch.tensor(token_ids, device=self.device),
            position_ids=torch.tensor(positions, device=self.device),
            logits_to_keep=torch.tensor(wanted, dtype=torch.long, device=self.device),
            use_cache=False,
            step_batch=batch,
        ).logits
        return logits.float()
