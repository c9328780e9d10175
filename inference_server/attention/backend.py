"""Defines the interface of attention over the paged KV cache, which is implemented separately for CPUs and GPUs."""

from collections.abc import Sequence as Items
from typing import Protocol

from torch import Tensor

from inference_server.attention.kv_cache import KVCache
from inference_server.attention.step_inputs import Segment
from inference_server.attention.torch_attention import AttentionSpec


class PromptAttention(Protocol):
    """Attention of the prompt segments of one forward pass."""

    @property
    def rows(self) -> Tensor:
        """Return the cache rows of the segments' tokens, (num_tokens,) int32 or int64."""
        ...

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, spec: AttentionSpec) -> Tensor:
        """Attend with each token to the keys of its sequence up to its own position.

        Args:
            query: (num_tokens, num_heads, head_dim), the tokens of all segments.
            keys: (num_blocks, block_size, num_kv_heads, head_dim), with the keys of the new tokens.
            values: (num_blocks, block_size, num_kv_heads, value_dim), with the values of the new tokens.
            spec: The attention's constants.

        Returns:
            (num_tokens, num_heads, value_dim) in the queries' dtype.
        """
        ...


class AttentionBackend(Protocol):
    """The operations of attention over the paged KV cache, for one kind of device."""

    def prompts(self, cache: KVCache, segments: Items[Segment]) -> PromptAttention:
        """Return the attention of these prompt segments, for all layers of one forward pass."""
        ...

    def decode(
        self, query: Tensor, keys: Tensor, values: Tensor, table: Tensor, lengths: Tensor, spec: AttentionSpec
    ) -> Tensor:
        """Attend with n tokens, each to the keys of its sequence up to its own position.

        Args:
            query: (n, num_heads, head_dim).
            keys: (num_blocks, block_size, num_kv_heads, head_dim), with the keys of the new tokens.
            values: (num_blocks, block_size, num_kv_heads, value_dim), with the values of the new tokens.
            table: (n, max_blocks) int32, the block table of each token's sequence.
            lengths: (n,) int32, the number of keys that each token attends to. The result of a row of length 0 is
                finite.
            spec: The attention's constants.

        Returns:
            (n, num_heads, value_dim) in the queries' dtype.
        """
        ...
