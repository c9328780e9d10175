"""Attention over the paged KV cache on a GPU: one operator for all prompts of a pass, one for all decoded sequences."""

from collections.abc import Sequence as Items

from torch import Tensor

from inference_server.attention.kv_cache import KVCache
from inference_server.attention.step_inputs import Segment
from inference_server.attention.torch_attention import AttentionSpec
from inference_server.gpu import ops
from inference_server.gpu.inputs import PromptRows, upload_prompts

# Number of splits of each sequence's keys in batch-invariant mode. It is constant, because a different number would
# change the order of sums, and so their rounding.
INVARIANT_SPLITS = 4


class GpuPrompts:
    """Attention of all prompt segments of a forward pass, in one operator (implements PromptAttention)."""

    def __init__(self, prompts: PromptRows) -> None:
        """Use the inputs in `prompts` for every layer."""
        self._prompts = prompts

    @property
    def rows(self) -> Tensor:
        """Return the cache rows of the segments' tokens, (num_tokens,) int32."""
        return self._prompts.rows

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, spec: AttentionSpec) -> Tensor:
        """Attend with each token to the keys of its sequence up to its own position. See PromptAttention.attend."""
        prompts = self._prompts
        return ops.paged_prefill_attention(
            query.contiguous(),
            keys,
            values,
            prompts.table,
            prompts.starts,
            prompts.lengths,
            prompts.longest,
            spec.scaling,
            spec.sliding_window,
            spec.softcap,
            spec.sinks,
        )


class GpuAttention:
    """Attention on a GPU (implements AttentionBackend)."""

    def __init__(self, *, batch_invariant: bool = False) -> None:
        """Choose the number of splits. If `batch_invariant`, it is constant, so results do not depend on the batch."""
        self._num_splits = INVARIANT_SPLITS if batch_invariant else 0

    def prompts(self, cache: KVCache, segments: Items[Segment]) -> GpuPrompts:
        """Return the attention of these prompt segments, for all layers of one forward pass."""
        return GpuPrompts(upload_prompts(segments, block_size=cache.block_size, device=cache.device))

    def decode(
        self, query: Tensor, keys: Tensor, values: Tensor, table: Tensor, lengths: Tensor, spec: AttentionSpec
    ) -> Tensor:
        """Attend with n tokens, each to the keys of its sequence up to its own position. See AttentionBackend.decode."""
        return ops.paged_decode_attention(
            query.contiguous(),
            keys,
            values,
            table,
            lengths,
            spec.scaling,
            spec.sliding_window,
            spec.softcap,
            self._num_splits,
            spec.sinks,
        )
