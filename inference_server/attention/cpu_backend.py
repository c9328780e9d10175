"""Computes attention over the paged KV cache on a CPU: with compiled kernels, or with torch where no kernel fits."""

from collections.abc import Sequence as Items

import torch
from torch import Tensor

from inference_server.attention.kv_cache import KVCache
from inference_server.attention.step_inputs import Segment, prefill_inputs
from inference_server.attention.torch_attention import AttentionSpec, causal_attention, causal_mask
from inference_server.kernels import ops


class CpuPrompts:
    """Attention of prompt segments, one segment after the other (implements PromptAttention)."""

    def __init__(self, cache: KVCache, segments: Items[Segment]) -> None:
        """Build the block tables of `segments`."""
        self._segments = segments
        # Causal masks by segment and window, shared by all layers.
        self._masks: dict[tuple[int, int | None], Tensor | None] = {}
        self._blocks, self._rows = prefill_inputs(cache, segments)

    @property
    def rows(self) -> Tensor:
        """Return the cache rows of the segments' tokens, (num_tokens,) int64."""
        return self._rows

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, spec: AttentionSpec) -> Tensor:
        """Attend with each token to the keys of its sequence up to its own position. See PromptAttention.attend."""
        outputs = []
        offset = 0
        for index, segment in enumerate(self._segments):
            rows = query[offset : offset + segment.length]
            output = None
            if spec.softcap is None and (spec.sliding_window is None or spec.sliding_window >= segment.end):
                blocks = self._blocks[index]
                output = ops.paged_prefill_attention(
                    rows, keys, values, blocks, segment.start, spec.scaling, spec.sinks
                )
            outputs.append(self._gathered(index, rows, keys, values, spec) if output is None else output)
            offset += segment.length
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _gathered(self, index: int, query: Tensor, keys: Tensor, values: Tensor, spec: AttentionSpec) -> Tensor:
        blocks, end = self._blocks[index], self._segments[index].end
        rows = query.to(keys.dtype)
        key, value = (cached[blocks].flatten(0, 1)[:end] for cached in (keys, values))
        return causal_attention(rows, key, value, spec, self._mask(index, spec, rows)).to(query.dtype)

    def _mask(self, index: int, spec: AttentionSpec, query: Tensor) -> Tensor | None:
        place = (index, spec.sliding_window)
        if place not in self._masks:
            segment = self._segments[index]
            self._masks[place] = causal_mask(segment.length, segment.end, spec, query)
        return self._masks[place]


class CpuAttention:
    """Attention on a CPU (implements AttentionBackend)."""

    def prompts(self, cache: KVCache, segments: Items[Segment]) -> CpuPrompts:
        """Return the attention of these prompt segments, for all layers of one forward pass."""
        return CpuPrompts(cache, segments)

    def decode(
        self, query: Tensor, keys: Tensor, values: Tensor, table: Tensor, lengths: Tensor, spec: AttentionSpec
    ) -> Tensor:
        """Attend with n tokens, each to the keys of its sequence up to its own position.

        See AttentionBackend.decode.
        """
        return ops.paged_decode_attention(
            query,
            keys,
            values,
            table,
            lengths,
            spec.scaling,
            sliding_window=spec.sliding_window,
            softcap=spec.softcap,
            sinks=spec.sinks,
        )
