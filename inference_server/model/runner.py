"""Runs the forward passes of one loaded model over its KV cache: token ids in, logits out.

Used on the engine's thread only. Works with blocks, positions and token ids; requests, text and sampling are elsewhere.
"""

import logging
from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from inference_server.attention.kv_cache import CPU_BLOCK_SIZE, NUM_SCRATCH_BLOCKS, SCRATCH_BLOCK, KVCache
from inference_server.attention.paged import DecodeBatch, PrefillBatch, Segment
from inference_server.cpu.decoder_weights import DecoderWeights, extract_weights
from inference_server.cpu.forward import CpuForward, DecodeTokens, PromptTokens
from inference_server.errors import UnsupportedModel
from inference_server.gpu.graphs import DecodeGraphs

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PromptPiece:
    """Consecutive prompt tokens of the sequence in `block_ids`; the first has the position `start`."""

    block_ids: Items[int]
    start: int
    token_ids: Items[int]
    wants_logits: bool  # True if the logits of its last token are needed


@dataclass(slots=True)
class NextToken:
    """The newest token of the sequence in `block_ids`, at `position`.

    A negative `token_id` means the token in row -(token_id + 1) of ModelRunner.sampled.
    """

    block_ids: Items[int]
    position: int
    token_id: int


class ModelRunner:
    """A model with its KV cache.

    Attributes:
        device: The device of the model and the cache.
        cache: The KV cache, whose first block is the scratch block.
        vocab_size: The width of the logits.
        model: The transformers model; None if kernel programs compute every pass.
        sampled: Tokens sampled on the device, int64 of shape (most sequences of a batch,).
        supports_overlap: True if the host may launch the next decode pass before it has the tokens of the last one.
    """

    def __init__(
        self,
        model: Any,
        *,
        num_blocks: int,
        block_size: int = CPU_BLOCK_SIZE,
        max_len: int | None = None,
        invariant_rows: int | None = None,
        cache_dtype: torch.dtype | None = None,
        use_kernel_programs: bool = True,
    ) -> None:
        """Create the cache, and choose how forward passes run.

        Args:
            model: A transformers causal language model that attends through paged.NAME, or DecoderWeights that
                cpu.forward.supports_all_passes accepts.
            num_blocks: Blocks of the KV cache, without the scratch block.
            block_size: Tokens of a block.
            max_len: Tokens of the longest sequence. If given, decode passes on a GPU are recorded as CUDA graphs.
            invariant_rows: If given, decode passes by modules are padded to this number of rows, and prompts are computed
                one by one, so that the shapes of matrix products do not depend on the batch composition.
            cache_dtype: The dtype of keys and values; None for the activations' dtype.
            use_kernel_programs: False runs a transformers model module by module even if a kernel program supports it.
        """
        self._invariant_rows = invariant_rows
        self.supports_overlap = False
        self.sampled = torch.zeros(1024, dtype=torch.int64)
        is_decoder = isinstance(model, DecoderWeights)
        self.device: torch.device = torch.device("cpu") if is_decoder else model.device
        self.cache = KVCache(
            num_blocks=num_blocks + NUM_SCRATCH_BLOCKS, block_size=block_size, device=self.device, dtype=cache_dtype
        )
        self._first = torch.zeros(1, dtype=torch.int64, device=self.device)
        self._cpu_forward: CpuForward | None = None
        self.model: Any
        if is_decoder:
            self._cpu_forward = CpuForward(model, self.cache)
            self.model, self._head = None, model.head
        else:
            self.model, self._head = model.eval(), model.get_output_embeddings()
            if self.device.type == "cpu" and use_kernel_programs:
                self._cpu_forward = self._kernel_programs(model)
        self.vocab_size: int = self._head.out_features
        self._graphs: DecodeGraphs | None = None
        if self.device.type == "cuda" and max_len is not None:
            max_blocks = -(-max_len // block_size)
            self._graphs = DecodeGraphs(self._decode, self.cache, max_blocks=max_blocks, invariant_rows=invariant_rows)

    def _kernel_programs(self, model: Any) -> CpuForward | None:
        try:
            return CpuForward(extract_weights(model), self.cache)
        except ValueError as reason:
            logger.info(
                "the model cannot run as one program of compiled kernels: %s. Its modules run one by one instead, mostly"
                " through torch's operations. This is slower, and prompts do not share a forward pass with decoding.",
                reason,
            )
            return None

    @torch.inference_mode()
    def probe(self) -> None:
        """Run one token through every layer, in the scratch block. The first call also allocates the cache.

        Raises:
            UnsupportedModel: The model uses a kind of attention that this server does not support: layers without keys
                (state space, shared layers), chunked attention, windows that only transformers' masks contain.
        """
        if self.model is None:
            self.prefill([PromptPiece([SCRATCH_BLOCK], 0, [0], wants_logits=True)])
            return
        batch = PrefillBatch(self.cache, [Segment([SCRATCH_BLOCK], 0, 1)])
        zero = torch.zeros((1, 1), dtype=torch.int64, device=self.device)
        self._forward(zero, zero, self._first, batch)
        config = self.model.config.get_text_config()
        layers = range(config.num_hidden_layers)
        if set(batch.windows) != set(layers):
            raise UnsupportedModel(f"only {len(batch.windows)} of its {len(layers)} layers keep keys and values")
        types = getattr(config, "layer_types", None) or ["full_attention"] * len(layers)
        if unsupported := sorted(set(types) - {"full_attention", "sliding_attention"}):
            raise UnsupportedModel(
                f"some of its layers are of type {unsupported[0]}, which this server does not support"
            )
        if getattr(config, "attention_chunk_size", None):
            raise UnsupportedModel("its attention is chunked, which this server does not support")
        if any(types[layer] == "sliding_attention" and batch.windows[layer] is None for layer in layers):
            raise UnsupportedModel("it does not pass its sliding windows to the attention")

    @torch.inference_mode()
    def prefill(self, pieces: Items[PromptPiece]) -> Tensor:
        """Compute prompt tokens. Returns the logits of the pieces that need them, (num_pieces, vocab_size) float32."""
        if self._invariant_rows is None or len(pieces) == 1:
            return self._prefill(pieces)
        return torch.cat([self._prefill([piece]) for piece in pieces])

    def _prefill(self, pieces: Items[PromptPiece]) -> Tensor:
        prompts, wanted = _flattened(pieces)
        columns = torch.tensor(wanted, dtype=torch.int64, device=self.device)
        if self._cpu_forward is not None and self._cpu_forward.supports_prefill:
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
        """Return True if `mixed` may be called.

        Batch invariance forbids it, because decoded tokens would share matrix products with prompt tokens.
        """
        forward = self._cpu_forward
        return forward is not None and forward.supports_prefill and self._invariant_rows is None

    @torch.inference_mode()
    def mixed(self, tokens: Items[NextToken], pieces: Items[PromptPiece]) -> Tensor:
        """Decode tokens and compute prompt tokens in one pass, which reads the weights once.

        Returns the logits of `decode`, then the logits of `prefill`, (num_rows, vocab_size) float32.
        """
        assert self._cpu_forward is not None
        prompts, wanted = _flattened(pieces)
        outputs = self._cpu_forward.mixed(_decoded(tokens), prompts)
        columns = [*range(len(tokens)), *(len(tokens) + column for column in wanted)]
        logits: Tensor = self._head(outputs[torch.tensor(columns)])
        return logits.float()

    @torch.inference_mode()
    def decode(self, tokens: Items[NextToken]) -> Tensor:
        """Compute one token of each sequence. Returns logits (num_seqs, vocab_size) float32."""
        decoded = _decoded(tokens)
        sampled = self.sampled.tolist()
        decoded.token_ids[:] = [sampled[-token_id - 1] if token_id < 0 else token_id for token_id in decoded.token_ids]
        if self._cpu_forward is not None:
            return self._cpu_forward.decode(decoded)
        token_ids, positions, block_ids = decoded.token_ids, decoded.positions, decoded.block_ids
        if self._graphs is not None and (logits := self._graphs.decode(token_ids, positions, block_ids)) is not None:
            return logits
        num_rows = max(len(tokens), self._invariant_rows or 0)
        padding = [0] * (num_rows - len(tokens))
        batch = DecodeBatch.from_positions(self.cache, block_ids, positions, num_rows=num_rows)
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
        """Run the modules of the model.

        Args:
            token_ids: (num_rows, num_columns) int64.
            positions: (num_rows, num_columns) int64.
            wanted: (num_wanted,) int64, the columns whose logits are needed.
            batch: The sequences' rows and blocks in the KV cache.

        Returns:
            Logits (num_rows, num_wanted, vocab_size) float32.
        """
        assert self.model is not None, "kernel programs compute every pass of DecoderWeights"
        logits: Tensor = self.model(
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


def _flattened(pieces: Items[PromptPiece]) -> tuple[PromptTokens, list[int]]:
    """Flatten prompt pieces into one batch. Returns the batch and the indices of the tokens whose logits are needed."""
    prompts = PromptTokens([], [], [])
    wanted: list[int] = []
    for piece in pieces:
        prompts.token_ids.extend(piece.token_ids)
        prompts.positions.extend(range(piece.start, piece.start + len(piece.token_ids)))
        prompts.segments.append(Segment(piece.block_ids, piece.start, len(piece.token_ids)))
        if piece.wants_logits:
            wanted.append(len(prompts.token_ids) - 1)
    return prompts, wanted
