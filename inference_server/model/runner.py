"""One loaded model and its KV cache: token ids in, logits out. Runs on the engine's thread only.

Knows blocks, positions and token ids; knows nothing of requests, text or sampling.
"""

import logging
from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from inference_server.attention.kv_cache import CPU_BLOCK_SIZE, NUM_SCRATCH_BLOCKS, SCRATCH_BLOCK, KVCache
from inference_server.attention.paged import DecodeBatch, PrefillBatch, Segment
from inference_server.cpu.decoder_weights import Decoder, decoder_of
from inference_server.cpu.forward import CpuForward, DecodeTokens, PromptTokens
from inference_server.errors import UnsupportedModel
from inference_server.gpu.graphs import DecodeGraphs

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PromptPiece:
    """Consecutive tokens of the sequence in `block_ids`; the first has the position `start`."""

    block_ids: Items[int]
    start: int
    token_ids: Items[int]
    wants_logits: bool  # of its last token


@dataclass(frozen=True, slots=True)
class NextToken:
    """The newest token of the sequence in `block_ids`, at `position`."""

    block_ids: Items[int]
    position: int
    token_id: int


def runs(decoder: Decoder, block_size: int, cache_dtype: torch.dtype | None) -> bool:
    """Whether every pass of it is a list of kernels, so that a ModelRunner needs no model of transformers beside it."""
    cache = KVCache(num_blocks=1, block_size=block_size, device=torch.device("cpu"), dtype=cache_dtype)
    return CpuForward(decoder, cache).has_prompts


class ModelRunner:
    def __init__(
        self,
        model: Any,
        *,
        num_blocks: int,
        block_size: int = CPU_BLOCK_SIZE,
        max_len: int | None = None,
        invariant_rows: int | None = None,
        cache_dtype: torch.dtype | None = None,
    ) -> None:
        """`model`: a causal language model of transformers, loaded with attention.NAME, or a Decoder that `runs` takes.

        `num_blocks` of the KV cache, beside the scratch block. `max_len`: tokens of the longest sequence; with it, decode
        passes on a GPU are recorded as CUDA graphs. `invariant_rows`: every decode pass by modules is filled up to so many
        rows, and prompts are computed one by one, so that no product's shape tells who else is there. `cache_dtype` of keys
        and values, if not the model's.
        """
        self._invariant_rows = invariant_rows
        is_decoder = isinstance(model, Decoder)
        self.device: torch.device = torch.device("cpu") if is_decoder else model.device
        self.cache = KVCache(
            num_blocks=num_blocks + NUM_SCRATCH_BLOCKS, block_size=block_size, device=self.device, dtype=cache_dtype
        )
        self._first = torch.zeros(1, dtype=torch.int64, device=self.device)
        self._cpu_forward: CpuForward | None = None
        if is_decoder:
            self._cpu_forward = CpuForward(model, self.cache)
            self._model, self._head = None, model.head
        else:
            self._model, self._head = model.eval(), model.get_output_embeddings()
            if self.device.type == "cpu":
                self._cpu_forward = self._kernels_of(model)
        self.vocab_size: int = self._head.out_features
        self._graphs: DecodeGraphs | None = None
        if self.device.type == "cuda" and max_len is not None:
            max_blocks = -(-max_len // block_size)
            self._graphs = DecodeGraphs(self._decode, self.cache, max_blocks=max_blocks, invariant_rows=invariant_rows)

    def _kernels_of(self, model: Any) -> CpuForward | None:
        try:
            return CpuForward(decoder_of(model), self.cache)
        except ValueError as reason:
            logger.info("the model runs through its own modules, as %s", reason)
            return None

    @torch.inference_mode()
    def probe(self) -> None:
        """One token through every layer, in the scratch block; the first time, this also allocates the cache.

        Raises UnsupportedModel if the model attends in a way that would be got wrong here: layers that keep no keys
        (state space, shared layers), chunked attention, windows that are told to transformers' masks alone.
        """
        if self._model is None:
            self.prefill([PromptPiece([SCRATCH_BLOCK], 0, [0], wants_logits=True)])
            return
        batch = PrefillBatch(self.cache, [Segment([SCRATCH_BLOCK], 0, 1)])
        zero = torch.zeros((1, 1), dtype=torch.int64, device=self.device)
        self._forward(zero, zero, self._first, batch)
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
        if self._invariant_rows is None or len(pieces) == 1:
            return self._prefill(pieces)
        return torch.cat([self._prefill([piece]) for piece in pieces])

    def _prefill(self, pieces: Items[PromptPiece]) -> Tensor:
        prompts, wanted = _prompts(pieces)
        columns = torch.tensor(wanted, dtype=torch.int64, device=self.device)
        if self._cpu_forward is not None and self._cpu_forward.has_prompts:
            logits: Tensor = self._head(self._cpu_forward.prefill(prompts)[columns])
            return logits.float()
        return self._forward(
            torch.tensor([prompts.token_ids], device=self.device),
            torch.tensor([prompts.positions], device=self.device),
            columns,
            PrefillBatch(self.cache, prompts.segments),
        )[0]

    @property
    def supports_mixed_batch(self) -> bool:
        """Whether `mixed` may be called. Not where bits must not depend on company: rows of prompts would be company."""
        forward = self._cpu_forward
        return forward is not None and forward.has_prompts and self._invariant_rows is None

    @torch.inference_mode()
    def mixed(self, tokens: Items[NextToken], pieces: Items[PromptPiece]) -> Tensor:
        """What decode and prefill return, one after the other, by one pass: the weights are read once."""
        assert self._cpu_forward is not None
        prompts, wanted = _prompts(pieces)
        outputs = self._cpu_forward.both(_decoded(tokens), prompts)
        columns = [*range(len(tokens)), *(len(tokens) + column for column in wanted)]
        logits: Tensor = self._head(outputs[torch.tensor(columns)])
        return logits.float()

    @torch.inference_mode()
    def decode(self, tokens: Items[NextToken]) -> Tensor:
        """One token each of several sequences. Returns logits (num_seqs, vocab_size) float32."""
        decoded = _decoded(tokens)
        if self._cpu_forward is not None:
            return self._cpu_forward.decode(decoded)
        token_ids, positions, block_ids = decoded.token_ids, decoded.positions, decoded.block_ids
        if self._graphs is not None and (logits := self._graphs.decode(token_ids, positions, block_ids)) is not None:
            return logits
        num_rows = max(len(tokens), self._invariant_rows or 0)
        padding = [0] * (num_rows - len(tokens))
        batch = DecodeBatch.of(self.cache, block_ids, positions, num_rows=num_rows)
        return self._decode(self._column([*token_ids, *padding]), self._column([*positions, *padding]), batch)[
            : len(tokens)
        ]

    def _decode(self, token_ids: Tensor, positions: Tensor, batch: DecodeBatch) -> Tensor:
        return self._forward(token_ids, positions, self._first, batch)[:, 0]

    def _column(self, values: list[int]) -> Tensor:
        return torch.tensor(values, device=self.device)[:, None]

    def _forward(
        self, token_ids: Tensor, positions: Tensor, wanted: Tensor, batch: PrefillBatch | DecodeBatch
    ) -> Tensor:
        """token_ids and positions (num_rows, num_columns) int64, wanted (num_wanted,) int64.

        Returns logits (num_rows, num_wanted, vocab_size) float32 of the columns `wanted`.
        """
        assert self._model is not None, "a decoder's passes are all lists of kernels"
        logits: Tensor = self._model(
            input_ids=token_ids,
            position_ids=positions,
            logits_to_keep=wanted,
            use_cache=False,
            step_batch=batch,
        ).logits
        return logits.float()


def _decoded(tokens: Items[NextToken]) -> DecodeTokens:
    return DecodeTokens(
        [token.token_id for token in tokens],
        [token.position for token in tokens],
        [token.block_ids for token in tokens],
    )


def _prompts(pieces: Items[PromptPiece]) -> tuple[PromptTokens, list[int]]:
    """Of prompts the tokens, and which of them want logits."""
    prompts = PromptTokens([], [], [])
    wanted: list[int] = []
    for piece in pieces:
        prompts.token_ids.extend(piece.token_ids)
        prompts.positions.extend(range(piece.start, piece.start + len(piece.token_ids)))
        prompts.segments.append(Segment(piece.block_ids, piece.start, len(piece.token_ids)))
        if piece.wants_logits:
            wanted.append(len(prompts.token_ids) - 1)
    return prompts, wanted
