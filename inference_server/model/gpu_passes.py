"""Chooses how a transformers model runs on a GPU, and runs its passes: by a fused decoder if one supports the model."""

import logging
from collections.abc import Sequence as Items
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor

from inference_server.attention.kv_cache import KVCache
from inference_server.attention.step_inputs import DecodeTokens, PromptTokens
from inference_server.gpu.attention import GpuAttention
from inference_server.gpu.decoder import extract
from inference_server.gpu.experts import replace_experts
from inference_server.gpu.forward import GpuForward
from inference_server.gpu.graphs import DecodeGraphs, DecodePass
from inference_server.gpu.inputs import DecodeInputs, DecodeRows
from inference_server.gpu.linear import has_outlier_threshold, replace_int8
from inference_server.gpu.paths import GpuPath
from inference_server.gpu.triton_support import obstacle
from inference_server.linears.plain import is_int8
from inference_server.lora.adapter import Adapter
from inference_server.model.module_adapters import ModuleAdapters, decoder_parts, module_parts

logger = logging.getLogger(__name__)


class GpuPasses:
    """The passes of one model on a GPU.

    Attributes:
        attention: The GPU's attention.
        fused: The fused decoder; None if passes run through the model's modules.
        adapters: The LoRA adapters; None if there are none.
    """

    def __init__(
        self,
        model: Any,
        cache: KVCache,
        sampled: Tensor,
        decode_by_modules: DecodePass,
        max_len: int | None,
        invariant_rows: int | None,
        *,
        fuse: bool,
        adapters: Items[Adapter] = (),
    ) -> None:
        """Choose the passes. If there is a fused decoder, the linear layers of `model` are removed.

        Args:
            model: A transformers causal language model on a GPU.
            cache: The KV cache.
            sampled: int64, one element for each row of a decode pass: the tokens that were sampled last; see
                DecodeInputs.
            decode_by_modules: Runs a decode pass through the model's modules.
            max_len: Tokens of the longest sequence; None: record no CUDA graphs.
            invariant_rows: The only batch size of decode passes under batch invariance, else None.
            fuse: False runs the model's modules even if there is a fused decoder.
            adapters: The LoRA adapters that sequences may use.

        Raises:
            UnsupportedModel: An adapter does not fit the model.
        """
        # cuDNN's attention is disabled, because it builds a plan for every new prompt length, in about 0.4 s each time.
        torch.backends.cuda.enable_cudnn_sdp(False)
        name, vocab_size = type(model).__name__, model.get_output_embeddings().out_features
        if reason := obstacle():
            logger.warning("%s runs without fused kernels, several times slower: %s", name, reason)
        # bitsandbytes waits for the device to find outliers, which a CUDA graph cannot record.
        self._can_record = max_len is not None and not has_outlier_threshold(model)
        is_quantized = any(is_int8(module) for module in model.modules())
        self.attention = GpuAttention(batch_invariant=invariant_rows is not None)
        self.fused = _fused_forward(model, cache, self.attention) if fuse else None
        if self.fused is None:
            replace_experts(model, is_int8=is_quantized)
            replace_int8(model)
        self._int8: Literal["kernels", "bitsandbytes"] | None = None
        if is_quantized:
            is_kept = self.fused is None and any(is_int8(module) for module in model.modules())
            self._int8 = "bitsandbytes" if is_kept else "kernels"
        self.adapters = self._module_adapters(model, adapters) if adapters else None
        max_blocks = cache.num_blocks if max_len is None else -(-max_len // cache.block_size)
        self._inputs = DecodeInputs(sampled, max_blocks=max_blocks, block_size=cache.block_size)
        self._decode = self.fused.decode if self.fused else decode_by_modules
        # Passes with adapters have separate graphs, so that passes without adapters need not compute products of zeros.
        passes = [self._decode] + ([self._decode_adapted] if self.adapters else [])
        dtype = self.fused.dtype if self.fused else torch.float32
        self._graphs, *adapted = [
            DecodeGraphs(each, self._inputs, vocab_size=vocab_size, dtype=dtype, invariant_rows=invariant_rows)
            for each in passes
        ]
        self._adapted_graphs = adapted[0] if adapted else None

    def _module_adapters(self, model: Any, adapters: Items[Adapter]) -> ModuleAdapters:
        if self.fused is not None:
            decoder = self.fused.decoder
            return ModuleAdapters(decoder_parts(decoder), adapters, self.fused.dtype, decoder.embedding.device)
        return ModuleAdapters(module_parts(model, adapters), adapters, model.dtype, model.device)

    def _decode_adapted(self, rows: DecodeRows) -> Tensor:
        """Decode tokens with the LoRA adapters named in the step's inputs."""
        with self._adapted(rows.adapters):
            return self._decode(rows)

    def _adapted(self, adapters: Items[int] | Tensor) -> AbstractContextManager[None]:
        return nullcontext() if self.adapters is None else self.adapters.rows(adapters)

    @property
    def path(self) -> GpuPath:
        """The way in which passes run; `records_graphs` is True once graphs are recorded."""
        return GpuPath(
            layers="fused" if self.fused else "modules",
            int8=self._int8,
            has_triton=obstacle() is None,
            records_graphs=bool(self._graphs.sizes),
        )

    def record(self) -> None:
        """Record decode passes as CUDA graphs, if they can be recorded.

        Raises:
            torch.OutOfMemoryError: The memory ran out.
        """
        if self._can_record:
            self._graphs.record()
            if self._adapted_graphs is not None:
                self._adapted_graphs.record()

    def decode(self, tokens: DecodeTokens) -> Tensor:
        """Decode tokens, with the graphs for adapters if any token has one. See DecodeGraphs.decode."""
        if self._adapted_graphs is not None and any(tokens.adapters):
            return self._adapted_graphs.decode(tokens)
        return self._graphs.decode(tokens)

    def prefill(self, prompts: PromptTokens, wanted: list[int]) -> Tensor:
        """Compute prompt tokens with the fused decoder. Returns logits (num_wanted, vocab_size) float32."""
        assert self.fused is not None
        with self._adapted(prompts.adapters):
            return self.fused.prefill(prompts, wanted).float()

    def mixed(self, tokens: DecodeTokens, prompts: PromptTokens, wanted: list[int]) -> Tensor:
        """Compute decoded and prompt tokens in one pass of the fused decoder. See GpuForward.mixed."""
        assert self.fused is not None
        count = len(tokens.token_ids)
        self._inputs.write(tokens, count)
        with self._adapted([*tokens.adapters, *prompts.adapters]):
            return self.fused.mixed(self._inputs.rows(count), prompts, wanted).float()


def _fused_forward(model: Any, cache: KVCache, attention: GpuAttention) -> GpuForward | None:
    """Return the model's fused forward pass, or None if it is not supported. Removes the linear layers of `model`."""
    try:
        decoder = extract(model)
    except ValueError as reason:
        logger.info("the model's modules run one by one on the GPU, which is slower: %s", reason)
        return None
    torch.cuda.empty_cache()  # frees the memory of the removed linear layers
    return GpuForward(decoder, cache, attention)
