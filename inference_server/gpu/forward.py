"""The forward pass of a Llama-like decoder on a GPU, with nine operators for each layer.

All tokens of a pass are one flat batch: the newest tokens of decoded sequences first, then the tokens of prompts. A pass
never waits for the device, and its decode part reads its inputs at fixed addresses, so that a CUDA graph can record it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from inference_server.attention.kv_cache import KVCache
from inference_server.attention.step_inputs import PromptTokens
from inference_server.attention.torch_attention import AttentionSpec
from inference_server.gpu import ops
from inference_server.gpu.attention import GpuAttention, GpuPrompts
from inference_server.gpu.decoder import GpuDecoder, GpuLayer
from inference_server.gpu.inputs import DecodeRows, PromptRows, upload_prompts


class GpuForward:
    """Runs passes of decoded tokens, of prompt tokens, or of both. Returned logits are new tensors, in `dtype`.

    Attributes:
        dtype: The dtype of activations and logits.
        decoder: The weights.
    """

    def __init__(self, decoder: GpuDecoder, cache: KVCache, attention: GpuAttention) -> None:
        """Create the forward pass of `decoder`. The first pass allocates the layers of `cache`."""
        self.dtype = decoder.embedding.dtype
        self.decoder, self._cache, self._attention = decoder, cache, attention
        self._cached: list[tuple[Tensor, Tensor]] = []  # keys and values of each layer

    def decode(self, tokens: DecodeRows) -> Tensor:
        """Decode tokens. Returns logits (n, vocab_size)."""
        return self._head(self._run(tokens, None))

    def prefill(self, prompts: PromptTokens, wanted: list[int]) -> Tensor:
        """Compute prompt tokens. Returns the logits of the tokens at the indices `wanted`, (num_wanted, vocab_size)."""
        rows = self._uploaded(prompts, wanted)
        return self._logits(self._run(None, rows), rows.wanted)

    def mixed(self, tokens: DecodeRows, prompts: PromptTokens, wanted: list[int]) -> Tensor:
        """Compute decoded and prompt tokens in one pass, which reads the weights once.

        Args:
            tokens: The n decoded tokens.
            prompts: The prompt tokens.
            wanted: The prompt tokens whose logits are needed, as indices into `prompts`.

        Returns:
            Logits (n + num_wanted, vocab_size), those of the decoded tokens first.
        """
        count = len(tokens.lengths)
        rows = self._uploaded(prompts, [*range(count), *(count + index for index in wanted)])
        return self._logits(self._run(tokens, rows), rows.wanted)

    def _uploaded(self, prompts: PromptTokens, wanted: list[int]) -> PromptRows:
        cache = self._cache
        return upload_prompts(
            prompts.segments,
            block_size=cache.block_size,
            device=cache.device,
            token_ids=prompts.token_ids,
            wanted=wanted,
        )

    def _logits(self, hidden: Tensor, wanted: Tensor) -> Tensor:
        return self._head(hidden.index_select(0, wanted))

    def _head(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self.decoder.head(hidden)
        divisor = self.decoder.logits_divisor
        return logits if divisor == 1.0 else logits / divisor

    def _run(self, tokens: DecodeRows | None, prompts: PromptRows | None) -> Tensor:
        """Run all layers.

        Returns the output head's inputs, (num_tokens, hidden_size), with the decoded tokens first.
        """
        decoder, eps = self.decoder, self.decoder.eps
        self._cached = self._cached or self._allocated()
        parts = [part for part in (tokens, prompts) if part is not None]
        rows = _joined([part.rows for part in parts])
        cos, sin = decoder.rotary.angles(_joined([part.positions for part in parts]))
        hidden = F.embedding(_joined([part.token_ids for part in parts]), decoder.embedding)
        if decoder.embedding_factor != 1.0:
            hidden = hidden * decoder.embedding_factor
        unrotated = (torch.ones_like(cos), torch.zeros_like(sin)) if decoder.has_unrotated else (cos, sin)
        delta: Tensor | None = None
        for layer, (keys, values) in zip(decoder.layers, self._cached, strict=True):
            if delta is None:
                normed = ops.rms_norm(hidden, layer.input_norm, eps)
            else:
                normed = ops.add_rms_norm(hidden, delta, layer.input_norm, eps)
            angles = (cos, sin) if layer.rotates else unrotated
            query = self._rotated(layer, normed, *angles, keys, values, rows)
            attended = self._attended(query, keys, values, tokens, prompts, layer.attention)
            delta = self._scaled(layer.output(attended.flatten(1)))
            normed = ops.add_rms_norm(hidden, delta, layer.post_norm, eps)
            delta = self._scaled(layer.down(ops.silu_mul(layer.gate_up(normed))))
        assert delta is not None, "a decoder has at least one layer"
        return ops.add_rms_norm(hidden, delta, decoder.norm, eps)

    def _scaled(self, delta: Tensor) -> Tensor:
        """Return the output of attention or MLP times the model's residual factor."""
        factor = self.decoder.residual_factor
        return delta if factor == 1.0 else delta * factor

    def _allocated(self) -> list[tuple[Tensor, Tensor]]:
        decoder = self.decoder
        like = decoder.embedding.new_empty((0, decoder.num_kv_heads, decoder.head_dim))
        return [self._cache.layer(index, like, like) for index in range(len(decoder.layers))]

    def _rotated(
        self, layer: GpuLayer, normed: Tensor, cos: Tensor, sin: Tensor, keys: Tensor, values: Tensor, rows: Tensor
    ) -> Tensor:
        """Compute q, k and v, write k and v to the cache, and return rotated queries (num_tokens, num_heads, head_dim)."""
        decoder = self.decoder
        return ops.rope_and_write(
            layer.qkv(normed),
            cos,
            sin,
            keys,
            values,
            rows,
            decoder.num_heads,
            decoder.num_kv_heads,
            layer.query_norm,
            layer.key_norm,
            decoder.eps,
        )

    def _attended(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        tokens: DecodeRows | None,
        prompts: PromptRows | None,
        spec: AttentionSpec,
    ) -> Tensor:
        """Return the attention of all tokens, (num_tokens, num_heads, head_dim)."""
        count = 0 if tokens is None else len(tokens.lengths)
        outputs = []
        if tokens is not None:
            outputs.append(self._attention.decode(query[:count], keys, values, tokens.table, tokens.lengths, spec))
        if prompts is not None:
            outputs.append(GpuPrompts(prompts).attend(query[count:], keys, values, spec))
        return _joined(outputs)


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
