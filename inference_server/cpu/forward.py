"""Runs forward passes on a CPU as kernel programs: lists of all the model's kernels, which are built once and reused.

With a small model, calling the kernels one by one from Python would take longer than the kernels themselves.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from inference_server.attention.kv_cache import KVCache
from inference_server.attention.step_inputs import (
    DecodeTokens,
    PromptTokens,
    Segment,
    decode_inputs,
    prefill_inputs,
)
from inference_server.attention.torch_attention import AttentionSpec
from inference_server.cpu.adapters import CpuAdapters
from inference_server.cpu.buffers import Buffers, allocate
from inference_server.cpu.decoder_weights import DecoderWeights, LayerWeights
from inference_server.cpu.embedding import write_embeddings
from inference_server.cpu.linear.kernel_linear import KernelLinear
from inference_server.cpu.steps import ExpertsStep, Steps
from inference_server.kernels import ops
from inference_server.kernels.jit import arguments
from inference_server.kernels.jit.arguments import (
    ADD_RMS_NORM_ROWS,
    ATTENTION_ROWS,
    LINEAR_ROWS,
    RMS_NORM_ROWS,
    ROPE_ROWS,
)
from inference_server.kernels.jit.kernel import Kernel, kernel
from inference_server.kernels.jit.program import KernelCall

# Block tables, lengths and cache rows of a batch without decoded tokens.
_EMPTY = (torch.zeros(0, 0, dtype=torch.int32), torch.zeros(0, dtype=torch.int32), torch.zeros(0, dtype=torch.int64))


class CpuForward:
    """Runs forward passes of decoded tokens and, if `supports_prefill`, of prompt tokens, separately or in one pass.

    The returned tensors are overwritten by the next call.
    """

    def __init__(self, decoder: DecoderWeights, cache: KVCache, adapters: CpuAdapters | None = None) -> None:
        """Create the forward pass of `decoder` with `cache`. `adapters`: LoRA adapters of the decoder, if it has any."""
        self._decoder, self._cache, self._adapters = decoder, cache, adapters
        keys, _ = self._keys_and_values(0)
        prefill = ops.prefill_attention_kernel(decoder.dtype, keys)
        self._prefill_kernel = None if decoder.has_windows else prefill
        self._buffers: Buffers | None = None
        self._segments: ops.PrefillSegments | None = None
        self._programs: dict[tuple[bool, bool, bool], list[Steps]] = {}

    @property
    def supports_prefill(self) -> bool:
        """Return True if prompts can be computed: there is a prefill attention kernel, and no layer has a window."""
        return self._prefill_kernel is not None

    @property
    def has_windows(self) -> bool:
        """Return True if any layer attends within a sliding window."""
        return self._decoder.has_windows

    def decode(self, tokens: DecodeTokens) -> Tensor:
        """Decode tokens, of which a sequence may have several. Returns logits (num_tokens, vocab_size) float32."""
        return self._run(tokens, None).logits[: len(tokens.token_ids), : self._decoder.head.out_features]

    def prefill(self, prompts: PromptTokens, wanted: list[int]) -> Tensor:
        """Compute prompt tokens.

        Returns the head's inputs of the tokens at the ascending indices `wanted`, (num_wanted, hidden_size).
        """
        return self._run(None, prompts, wanted).normed[: len(wanted)]

    def mixed(self, tokens: DecodeTokens, prompts: PromptTokens, wanted: list[int]) -> Tensor:
        """Compute decoded and prompt tokens in one pass, which reads the weights once.

        Returns the head's inputs, (num_decoded + num_wanted, hidden_size): those of the decoded tokens, then those of the
        prompt tokens at the ascending indices `wanted`.
        """
        return self._run(tokens, prompts, wanted).normed[: len(tokens.token_ids) + len(wanted)]

    def _run(
        self, tokens: DecodeTokens | None, prompts: PromptTokens | None, wanted: list[int] | None = None
    ) -> Buffers:
        num_decoded = len(tokens.token_ids) if tokens else 0
        table, lengths, rows = _EMPTY
        if tokens:
            table, lengths, rows = decode_inputs(
                self._cache.block_size, tokens.block_ids, tokens.positions, num_decoded
            )
        tables: list[Tensor] = []
        if prompts:
            tables, prompt_rows = prefill_inputs(self._cache, prompts.segments)
            rows = torch.cat([rows, prompt_rows])
        count = len(rows)
        buffers = self._buffers_for(count, num_decoded, table.shape[1])
        buffers.table[:num_decoded, : table.shape[1]] = table
        buffers.lengths[:num_decoded] = lengths
        buffers.rows[:count] = rows
        if prompts:
            self._set_segments(prompts.segments, tables, num_decoded, buffers)
        self._set_inputs([each for each in (tokens, prompts) if each], buffers)
        parts = (tokens is not None, prompts is not None, self._set_adapters(tokens, prompts, buffers))
        if parts not in self._programs:
            calls = self._calls(buffers, *parts)
            self._programs[parts] = [Steps(each, keep=buffers) for each in calls if each]
        whole, *rest = self._programs[parts]
        whole.run(count, num_decoded)
        kept = [*range(num_decoded), *(num_decoded + index for index in wanted or ())]
        if rest and kept:
            _keep_rows(kept, buffers.hidden, buffers.attended, buffers.adapters)
            rest[0].run(len(kept), num_decoded)
        return buffers

    def _set_segments(self, parts: list[Segment], tables: list[Tensor], first_row: int, buffers: Buffers) -> None:
        """Write the table of segments that the prefill attention kernel reads."""
        starts, lengths = [part.start for part in parts], [part.length for part in parts]
        segments = ops.PrefillSegments(starts, lengths, tables, first_row)
        segments.allocate_workspace(self._decoder.num_kv_heads, self._decoder.head_dim)
        self._segments = segments  # its workspace must stay alive, because the kernel accesses it by address
        buffers.segments[: len(segments.table)] = segments.table

    def _set_inputs(self, parts: "list[DecodeTokens | PromptTokens]", buffers: Buffers) -> None:
        """Write the embeddings and rotary angles of all tokens."""
        token_ids = [token_id for part in parts for token_id in part.token_ids]
        positions = [position for part in parts for position in part.positions]
        count = len(token_ids)
        write_embeddings(self._decoder.embedding, token_ids, buffers.hidden[:count])
        if self._decoder.embedding_factor != 1.0:
            buffers.hidden[:count] *= self._decoder.embedding_factor
        self._decoder.rotary.angles(torch.tensor(positions), buffers.cos[:count], buffers.sin[:count])

    def _set_adapters(self, tokens: DecodeTokens | None, prompts: PromptTokens | None, buffers: Buffers) -> bool:
        """Write the adapter of each row. Returns True if any row has one, so that the pass needs the adapters' kernels."""
        if self._adapters is None:
            return False
        rows = [*(tokens.adapters if tokens else ()), *(prompts.adapters if prompts else ())]
        if not any(rows):
            return False
        buffers.adapters[: len(rows)] = torch.tensor(rows, dtype=torch.int32)
        return True

    def _buffers_for(self, num_rows: int, num_seqs: int, num_blocks: int) -> Buffers:
        """Return buffers of at least these sizes. Larger ones have new addresses, so the programs are built again."""
        wanted = (num_rows, num_seqs, num_blocks)
        there = (len(self._buffers.hidden), *self._buffers.table.shape) if self._buffers else (0, 0, 0)
        if self._buffers is None or any(want > has for want, has in zip(wanted, there, strict=True)):
            sizes = (max(has, _rounded_up(want)) for want, has in zip(wanted, there, strict=True))
            self._buffers = allocate(self._decoder, self._adapters, *sizes)
            self._programs = {}
        return self._buffers

    def _calls(
        self, buffers: Buffers, has_decode: bool, has_prompts: bool, has_adapters: bool
    ) -> tuple[list[KernelCall | ExpertsStep], list[KernelCall | ExpertsStep]]:
        """Return the steps of a pass in order, in two parts. Without `has_adapters`, no row has an adapter.

        With prompts, the second part begins after the attention of the last layer. It computes only the rows whose logits
        are needed, because no later layer reads the others. Without prompts, the second part is empty.
        """
        calls: list[KernelCall | ExpertsStep] = []
        rest: list[KernelCall | ExpertsStep] = []
        adapters = self._adapters if has_adapters else None
        attended = buffers.attended.flatten(1)
        for index, layer in enumerate(self._decoder.layers):
            calls.append(self._norm(layer.input_norm, buffers, is_first=not calls))
            calls.append(_linear(layer.qkv, buffers.normed, buffers.qkv, buffers))
            calls += _adapted(adapters, index, "qkv", buffers.normed, buffers.qkv, buffers)
            calls += self._attention(index, layer, buffers, has_decode, has_prompts)
            is_last = index == len(self._decoder.layers) - 1
            after = rest if is_last and has_prompts else calls
            after.append(_linear(layer.output, attended, buffers.delta, buffers))
            after += _adapted(adapters, index, "output", attended, buffers.delta, buffers)
            after.append(self._norm(layer.post_norm, buffers))
            if layer.experts is not None:
                after.append(ExpertsStep(layer.experts, buffers.normed, buffers.delta))
            else:
                after += _mlp(index, layer, buffers, adapters)
            if is_last:
                after.append(self._norm(self._decoder.norm, buffers))
        if not has_prompts:
            calls.append(_linear(self._decoder.head, buffers.normed, buffers.logits, buffers))
        return calls, rest

    def _kernel(self, name: str, *others: torch.dtype) -> Kernel:
        found = kernel(name, *(dtype is torch.bfloat16 for dtype in (self._decoder.dtype, *others)))
        assert found is not None
        return found

    def _norm(self, weight: Tensor, buffers: Buffers, *, is_first: bool = False) -> KernelCall:
        """Return the call that normalises `hidden`. The kernel adds delta to hidden first, unless `is_first`."""
        hidden, delta, normed, eps = buffers.hidden, buffers.delta, buffers.normed, self._decoder.eps
        if is_first:
            return KernelCall(self._kernel("rms_norm"), arguments.rms_norm(hidden, weight, normed, eps), RMS_NORM_ROWS)
        block = arguments.add_rms_norm(hidden, delta, weight, normed, eps, self._decoder.residual_factor)
        return KernelCall(self._kernel("add_rms_norm"), block, ADD_RMS_NORM_ROWS)

    def _attention(
        self, index: int, layer: LayerWeights, b: Buffers, has_decode: bool, has_prompts: bool
    ) -> list[KernelCall]:
        keys, values = self._keys_and_values(index)
        cos, sin = (b.cos, b.sin) if layer.rotates else (b.ones, b.zeros)
        rotate = arguments.rope_and_write(b.qkv, cos, sin, keys, values, b.rows, b.query, layer.head_norms)
        name = "rope_and_write" if layer.head_norms is None else "norm_rope_and_write"
        calls = [KernelCall(self._kernel(name, cos.dtype, keys.dtype), rotate, ROPE_ROWS)]
        if has_prompts:
            calls.append(self._prefill_attention(layer.attention, keys, values, b))
        if has_decode:
            calls.append(self._decode_attention(layer.attention, keys, values, b))
        return calls

    def _decode_attention(self, spec: AttentionSpec, keys: Tensor, values: Tensor, b: Buffers) -> KernelCall:
        block = arguments.attention(
            b.query, keys, values, b.table, b.lengths, b.attended, spec.scaling, spec.sliding_window, spec.softcap
        )
        return KernelCall(self._kernel("decode_attention", keys.dtype), block, ATTENTION_ROWS, is_decode=True)

    def _prefill_attention(self, spec: AttentionSpec, keys: Tensor, values: Tensor, b: Buffers) -> KernelCall:
        assert self._prefill_kernel is not None
        block = arguments.prefill_attention(b.query, keys, values, b.segments, b.attended, spec.scaling)
        # The call has no `rows_at`: the table of segments, not the block, contains the numbers of rows.
        return KernelCall(self._prefill_kernel, block)

    def _keys_and_values(self, layer: int) -> tuple[Tensor, Tensor]:
        decoder = self._decoder
        like = torch.empty(0, decoder.num_kv_heads, decoder.head_dim, dtype=decoder.dtype)
        return self._cache.layer(layer, like, like)


def _mlp(index: int, layer: LayerWeights, b: Buffers, adapters: CpuAdapters | None) -> Iterator[KernelCall]:
    """Yield the calls of an MLP. If an adapter adapts gate or up, the kernel that adds it also applies the gate."""
    assert layer.gate_up is not None and layer.down is not None
    ungated = adapters.ungated(index) if adapters else None
    if ungated is None:
        yield _linear(layer.gate_up, b.normed, b.product, b)
    else:
        gate_up = _as_wide(b.gate_up, ungated.out_features)
        yield _linear(ungated, b.normed, gate_up, b)
        yield from _adapted(adapters, index, "gate_up", b.normed, gate_up, b, b.product)
    yield _linear(layer.down, b.product, b.delta, b)
    yield from _adapted(adapters, index, "down", _as_wide(b.product, layer.down.in_features), b.delta, b)


def _as_wide(buffer: Tensor, width: int) -> Tensor:
    """Return a view of a buffer with rows of `width` values. The buffer may be wider, for other layers of the model."""
    return buffer.view(-1)[: len(buffer) * width].view(-1, width)


def _adapted(
    adapters: CpuAdapters | None,
    index: int,
    place: str,
    x: Tensor,
    out: Tensor,
    b: Buffers,
    gated: Tensor | None = None,
) -> Iterator[KernelCall]:
    """Yield the call that adds the adapters to a linear layer's result, if there are any. See CpuAdapters.call."""
    if adapters is not None:
        yield from adapters.call(index, place, x, out, b.adapters, b.scratch, gated)


def _keep_rows(kept: list[int], *tensors: Tensor) -> None:
    """Move the rows with the ascending indices `kept` to the beginning of each tensor."""
    if kept[-1] < len(kept):  # these rows are at the beginning already
        return
    indices = torch.tensor(kept)
    for tensor in tensors:
        tensor[: len(kept)] = tensor[indices]


def _linear(linear: KernelLinear, x: Tensor, out: Tensor, buffers: Buffers) -> KernelCall:
    return KernelCall(*linear.call(x, out, buffers.workspace), LINEAR_ROWS, linear.plan)


def supports_all_passes(decoder: DecoderWeights, block_size: int, cache_dtype: torch.dtype | None) -> bool:
    """Return True if kernel programs compute every pass, so that a ModelRunner needs no transformers model.

    Args:
        decoder: The weights.
        block_size: The KV cache's block size in tokens.
        cache_dtype: The KV cache's dtype; None for the activations' dtype.
    """
    cache = KVCache(num_blocks=1, block_size=block_size, device=torch.device("cpu"), dtype=cache_dtype)
    return CpuForward(decoder, cache).supports_prefill


def _rounded_up(number: int) -> int:
    """Return the next power of two, at least 8, so that buffers rarely grow. Returns 0 for 0."""
    return max(8, 1 << (number - 1).bit_length()) if number else 0
