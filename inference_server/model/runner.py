"""Runs the forward passes of one loaded model over its KV cache: token ids in, logits out.

Used on the engine's thread only. This module works with blocks, positions and token ids, and does not depend on
requests, text or sampling.
"""

import logging
from collections.abc import Sequence as Items
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from inference_server.attention.backend import AttentionBackend
from inference_server.attention.cpu_backend import CpuAttention
from inference_server.attention.kv_cache import BLOCK_SIZE, NUM_SCRATCH_BLOCKS, SCRATCH_BLOCK, KVCache
from inference_server.attention.paged import DecodeBatch, PrefillBatch, passing
from inference_server.attention.step_inputs import DecodeTokens, PromptTokens, Segment, decode_inputs
from inference_server.cpu.adapters import CpuAdapters
from inference_server.cpu.decoder_weights import DecoderWeights, extract_weights
from inference_server.cpu.forward import CpuForward
from inference_server.cpu.paths import path_in_use
from inference_server.errors import UnsupportedModel
from inference_server.gpu.inputs import DecodeRows, upload
from inference_server.linears.experts import switch_off_router_logits
from inference_server.lora.adapter import Adapter
from inference_server.model.gpu_passes import GpuPasses
from inference_server.model.module_adapters import ModuleAdapters, module_parts
from inference_server.progress import progress

logger = logging.getLogger(__name__)

# Lengths of the warm-up prompts, in tokens. Triton compiles a kernel for each range of sizes at its first use,
# which takes seconds. These lengths use every range of the attention kernel and of the int8 product, for any number of
# query heads that share a KV head.
WARM_UP_LENGTHS = (1, 4, 16, 32, 64, 128)


@dataclass(frozen=True, slots=True)
class PromptPiece:
    """Consecutive prompt tokens of a sequence, from position `start` on, cached in blocks `block_ids`."""

    block_ids: Items[int]
    start: int
    token_ids: Items[int]
    wants_logits: bool  # True if the logits of its last token are needed
    adapter: int = 0  # the LoRA adapter of the sequence: its place in the runner's list, from 1; 0 for none


@dataclass(slots=True)
class NextToken:
    """A token to decode: a sequence's newest token or a draft token, at `position`, cached in blocks `block_ids`.

    A negative `token_id` -(k + 1) refers to row k of ModelRunner.sampled, if the runner supports overlap. `adapter`: see
    PromptPiece.
    """

    block_ids: Items[int]
    position: int
    token_id: int
    adapter: int = 0


class ModelRunner:
    """A model with its KV cache.

    Attributes:
        device: The device of the model and the cache.
        cache: The KV cache, whose first block is the scratch block.
        attention: The device's attention.
        sampled: int64 on the device, of at least `max_seqs` elements, for the tokens that were sampled last; see
            NextToken.
        vocab_size: The width of the logits.
        model: The transformers model; None if DecoderWeights or a fused decoder replace it.
    """

    def __init__(
        self,
        model: Any,
        *,
        num_blocks: int,
        block_size: int = BLOCK_SIZE,
        max_len: int | None = None,
        max_seqs: int = 64,
        invariant_rows: int | None = None,
        cache_dtype: torch.dtype | None = None,
        use_kernel_programs: bool = True,
        adapters: Items[Adapter] = (),
    ) -> None:
        """Create the cache, and choose how forward passes run.

        On a GPU, the linear layers of a model with a fused decoder are removed from `model`, which can then no longer run.

        Args:
            model: A transformers causal language model that attends through paged.NAME, or DecoderWeights that
                cpu.forward.supports_all_passes accepts.
            num_blocks: Blocks of the KV cache, without the scratch block.
            block_size: Tokens of a block.
            max_len: Tokens of the longest sequence. If given, decode passes on a GPU can be recorded as CUDA graphs.
            max_seqs: The largest number of sequences of a decode pass on a GPU.
            invariant_rows: If given, results do not depend on the batch composition. Decode passes on a GPU are padded
                to this number of rows. On a CPU, decode passes by modules compute one row at a time, because torch's
                attention rounds differently beside a longer sequence. Prompts are computed one by one.
            cache_dtype: The dtype of keys and values; None for the activations' dtype.
            use_kernel_programs: False runs a transformers model module by module even if a kernel program or a fused
                decoder supports it.
            adapters: The LoRA adapters that sequences may use.

        Raises:
            UnsupportedModel: An adapter does not fit the model.
        """
        self._invariant_rows = invariant_rows
        self._has_adapters = bool(adapters)
        self._module_adapters: ModuleAdapters | None = None
        is_decoder = isinstance(model, DecoderWeights)
        self.device: torch.device = torch.device("cpu") if is_decoder else model.device
        self.cache = KVCache(
            num_blocks=num_blocks + NUM_SCRATCH_BLOCKS, block_size=block_size, device=self.device, dtype=cache_dtype
        )
        self.attention: AttentionBackend = CpuAttention()
        self._first = torch.zeros(1, dtype=torch.int64, device=self.device)
        self.sampled = torch.zeros(max(max_seqs, invariant_rows or 0), dtype=torch.int64, device=self.device)
        self._cpu_forward: CpuForward | None = None
        self._why_modules = ""
        self._gpu: GpuPasses | None = None
        self.model: Any
        if is_decoder:
            self._cpu_forward = CpuForward(model, self.cache, CpuAdapters(model, adapters) if adapters else None)
            self.model, self._head = None, model.head
        else:
            switch_off_router_logits(model)
            self.model, self._head = model.eval(), model.get_output_embeddings()
            if self.device.type == "cpu" and use_kernel_programs:
                self._cpu_forward = self._kernel_programs(model, adapters)
            if adapters and self.device.type == "cpu" and not self._runs_prompts_as_program:
                parts = module_parts(model, adapters)
                self._module_adapters = ModuleAdapters(parts, adapters, torch.float32, self.device)
        self.vocab_size: int = self._head.out_features
        if self.device.type == "cuda":
            decode, fuse = self._decode_by_modules, use_kernel_programs
            self._gpu = GpuPasses(
                model, self.cache, self.sampled, decode, max_len, invariant_rows, fuse=fuse, adapters=adapters
            )
            self._module_adapters = self._gpu.adapters
            self.attention = self._gpu.attention
            self.model = model if self._gpu.fused is None else None

    @property
    def _runs_prompts_as_program(self) -> bool:
        return self._cpu_forward is not None and self._cpu_forward.supports_prefill

    @property
    def depends_on_threads(self) -> bool:
        """Return True if the number of CPU threads may change the results, because torch computes a part of them.

        The results of kernel programs and of a GPU are bit-identical for any number of threads.
        """
        return self.device.type == "cpu" and not self._runs_prompts_as_program

    def _kernel_programs(self, model: Any, adapters: Items[Adapter]) -> CpuForward | None:
        try:
            decoder = extract_weights(model)
        except ValueError as reason:
            self._why_modules = str(reason)
            logger.info(
                "the model cannot run as one program of compiled kernels: %s. Its modules run one by one instead, mostly"
                " through torch's operations. This is slower, and prompts do not share a forward pass with decoding.",
                reason,
            )
            return None
        return CpuForward(decoder, self.cache, CpuAdapters(decoder, adapters) if adapters else None)

    @property
    def path(self) -> str:
        """Return a phrase about the code that runs passes, such as "kernels for avx2, one program of compiled kernels"."""
        if self._gpu is not None:
            return str(self._gpu.path)
        return str(path_in_use(self._cpu_forward, self._why_modules))

    @property
    def supports_overlap(self) -> bool:
        """Return True if `decode` accepts references to sampled tokens, so that it can start before the host reads them."""
        return self._gpu is not None

    @torch.inference_mode()
    def record_graphs(self) -> None:
        """Prepare a GPU for requests, after `probe`: compile the kernels of prompts, and record CUDA graphs of decode passes.

        Without `max_len`, nothing is recorded. On a CPU, this method does nothing.

        Raises:
            torch.OutOfMemoryError: The memory ran out.
        """
        if self._gpu is not None:
            with progress("compiling kernels for prompts"):
                self._warm_up_prompts()
            self._gpu.record()
            logger.info("the model runs on %s with %s", self.device, self.path)

    def _warm_up_prompts(self) -> None:
        """Compute prompts of several lengths in the scratch block, whose content is never read."""
        size = self.cache.block_size
        for length in WARM_UP_LENGTHS:
            blocks = [SCRATCH_BLOCK] * -(-length // size)
            self._prefill([PromptPiece(blocks, 0, [0] * length, wants_logits=True)])

    @torch.inference_mode()
    def probe(self) -> None:
        """Run one token through every layer, in the scratch block. The first call also allocates the cache.

        Raises:
            UnsupportedModel: The model uses a kind of attention that this server does not support. These are layers
                without keys (state space, shared layers), chunked attention, and sliding windows that transformers
                passes only as masks.
        """
        if self.model is None:
            self.prefill([PromptPiece([SCRATCH_BLOCK], 0, [0], wants_logits=True)])
            return
        batch = PrefillBatch(self.cache, self.attention.prompts(self.cache, [Segment([SCRATCH_BLOCK], 0, 1)]))
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
        """Compute prompt tokens. Returns float32 logits of shape (number of pieces with `wants_logits`, vocab_size)."""
        if self._invariant_rows is None or len(pieces) == 1:
            return self._prefill(pieces)
        return torch.cat([self._prefill([piece]) for piece in pieces])

    def _prefill(self, pieces: Items[PromptPiece]) -> Tensor:
        prompts, wanted = _flattened(pieces)
        if self._gpu is not None and self._gpu.fused is not None:
            return self._gpu.prefill(prompts, wanted)
        if self._cpu_forward is not None and self._cpu_forward.supports_prefill:
            logits: Tensor = self._head(self._cpu_forward.prefill(prompts, wanted))
            return logits.float()
        with self._adapted(prompts.adapters):
            return self._prefill_by_modules(prompts, wanted)

    def _prefill_by_modules(self, prompts: PromptTokens, wanted: list[int]) -> Tensor:
        columns = self._integers(wanted)
        batch = PrefillBatch(self.cache, self.attention.prompts(self.cache, prompts.segments))
        token_ids, positions = self._integers(prompts.token_ids), self._integers(prompts.positions)
        return self._forward(token_ids[None], positions[None], columns, batch)[0]

    @property
    def supports_mixed_batch(self) -> bool:
        """Return True if `mixed` may be called.

        With batch invariance, the result is False, because decoded tokens would share matrix products with prompt
        tokens.
        """
        if self._invariant_rows is not None:
            return False
        if self._gpu is not None:
            return self._gpu.fused is not None
        return self._runs_prompts_as_program

    @torch.inference_mode()
    def mixed(self, tokens: Items[NextToken], pieces: Items[PromptPiece]) -> Tensor:
        """Decode tokens and compute prompt tokens in one pass, which reads the weights once.

        Returns the logits of `decode`, then the logits of `prefill`, (num_rows, vocab_size) float32. The caller may change
        them.
        """
        decoded = self._decoded(tokens)
        prompts, wanted = _flattened(pieces)
        if self._gpu is not None:
            return self._gpu.mixed(decoded, prompts, wanted)
        assert self._cpu_forward is not None
        logits: Tensor = self._head(self._cpu_forward.mixed(decoded, prompts, wanted))
        return logits.float()

    @torch.inference_mode()
    def decode(self, tokens: Items[NextToken]) -> Tensor:
        """Decode tokens. A sequence may have several: its newest token, then draft tokens at the next positions.

        Returns logits (num_tokens, vocab_size) float32, which the caller may change. On a GPU they are a new tensor. On
        a CPU the next call of `decode`, `prefill` or `mixed` may overwrite them.
        """
        decoded = self._decoded(tokens)
        if self._cpu_forward is not None:
            return self._cpu_forward.decode(decoded)
        if self._gpu is not None:
            return self._gpu.decode(decoded)
        if self._invariant_rows is not None and len(tokens) > 1:
            return torch.cat([self.decode([token]) for token in tokens])
        num_rows = len(tokens)
        table, lengths, rows = decode_inputs(self.cache.block_size, decoded.block_ids, decoded.positions, num_rows)
        token_ids, positions = (self._integers([*ids]) for ids in (decoded.token_ids, decoded.positions))
        adapters = self._integers([*decoded.adapters]) if self._invariant_rows else decoded.adapters
        with self._adapted(adapters):
            return self._decode_by_modules(
                DecodeRows(token_ids, positions, rows, lengths, table, lengths.new_zeros(num_rows))
            )

    def _adapted(self, adapters: Items[int] | Tensor) -> AbstractContextManager[None]:
        """Return a context in which passes by modules apply the adapter of each row."""
        return nullcontext() if self._module_adapters is None else self._module_adapters.rows(adapters)

    def _decode_by_modules(self, inputs: DecodeRows) -> Tensor:
        batch = DecodeBatch(self.cache, self.attention, inputs.table, inputs.lengths, inputs.rows)
        positions = inputs.positions.long()[:, None]
        return self._forward(inputs.token_ids[:, None], positions, self._first, batch)[:, 0]

    def _integers(self, values: list[int]) -> Tensor:
        return upload(values, self.device).long()

    def _forward(
        self, token_ids: Tensor, positions: Tensor, wanted: Tensor, batch: PrefillBatch | DecodeBatch
    ) -> Tensor:
        """Run the modules of the model.

        Args:
            token_ids: (num_rows, num_columns) int64.
            positions: (num_rows, num_columns) int64.
            wanted: (num_wanted,) int64, the columns whose logits are needed.
            batch: The tokens' rows, and the sequences' blocks, in the KV cache.

        Returns:
            Logits (num_rows, num_wanted, vocab_size) float32.
        """
        assert self.model is not None, "kernel programs compute every pass of DecoderWeights"
        with passing(batch):
            logits: Tensor = self.model(
                input_ids=token_ids,
                position_ids=positions,
                logits_to_keep=wanted,
                use_cache=False,
                step_batch=batch,
            ).logits
        return logits.float()

    def _decoded(self, tokens: Items[NextToken]) -> DecodeTokens:
        return DecodeTokens(
            [token.token_id for token in tokens],
            [token.position for token in tokens],
            [token.block_ids for token in tokens],
            [token.adapter for token in tokens] if self._has_adapters else (),
        )


def _flattened(pieces: Items[PromptPiece]) -> tuple[PromptTokens, list[int]]:
    """Flatten prompt pieces into one batch. Returns the batch and the indices of the tokens whose logits are needed."""
    prompts = PromptTokens([], [], [])
    wanted: list[int] = []
    for piece in pieces:
        prompts.token_ids.extend(piece.token_ids)
        prompts.positions.extend(range(piece.start, piece.start + len(piece.token_ids)))
        prompts.segments.append(Segment(piece.block_ids, piece.start, len(piece.token_ids), piece.adapter))
        if piece.wants_logits:
            wanted.append(len(prompts.token_ids) - 1)
    return prompts, wanted
