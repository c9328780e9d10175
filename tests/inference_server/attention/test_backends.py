"""Attention on a CPU and on a GPU (with the torch versions of its operators) have the same results."""

import pytest
import torch

from inference_server.attention.cpu_backend import CpuAttention
from inference_server.attention.kv_cache import BLOCK_SIZE, KVCache
from inference_server.attention.paged import DecodeBatch, PrefillBatch
from inference_server.attention.step_inputs import Segment, decode_inputs
from inference_server.attention.torch_attention import AttentionSpec
from inference_server.gpu.attention import GpuAttention

BACKENDS = [CpuAttention(), GpuAttention(), GpuAttention(batch_invariant=True)]
SINKS = torch.tensor([-9.0, 0.5, 2.0, 9.0])
SPECS = {
    "all keys": AttentionSpec(0.2),
    "window": AttentionSpec(0.2, sliding_window=20),
    "softcap": AttentionSpec(0.2, softcap=5.0),
    "sinks": AttentionSpec(0.2, sinks=SINKS),
    "sinks and window": AttentionSpec(0.2, sliding_window=20, sinks=SINKS),
}
SEGMENTS = [Segment(range(1, 4), 0, 70), Segment(range(4, 6), 0, 3), Segment(range(6, 8), 0, 33)]


def outputs(backend, spec, value_dim):
    """Return the results of a prefill pass and of a decode pass after it."""
    generator = torch.Generator().manual_seed(1)
    cache = KVCache(num_blocks=10, block_size=BLOCK_SIZE, device=torch.device("cpu"))

    def heads(num_tokens):
        shapes = ((num_tokens, 4, 16), (num_tokens, 2, 16), (num_tokens, 2, value_dim))
        return [torch.randn(shape, generator=generator) for shape in shapes]

    prefill = PrefillBatch(cache, backend.prompts(cache, SEGMENTS))
    prompts = prefill.attend(0, *heads(sum(segment.length for segment in SEGMENTS)), spec)
    inputs = decode_inputs(BLOCK_SIZE, [s.block_ids for s in SEGMENTS], [s.length for s in SEGMENTS], 4)
    decode = DecodeBatch(cache, backend, *inputs)
    return prompts, decode.attend(0, *heads(4), spec)[:3]  # the fourth row is padding


@pytest.mark.parametrize("value_dim", [16, 8])
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_backends_have_the_same_results(spec, value_dim):
    expected, *others = (outputs(backend, spec, value_dim) for backend in BACKENDS)
    for found in others:
        torch.testing.assert_close(found, expected)


def test_tables_of_a_decode_pass_contain_the_used_blocks_and_zeros():
    table, lengths, rows = decode_inputs(4, [[3, 5, 6], [2], range(7, 9)], [6, 0, 7], 5, 4)
    assert table.tolist() == [[3, 5, 0, 0], [2, 0, 0, 0], [7, 8, 0, 0], [0] * 4, [0] * 4]
    assert lengths.tolist() == [7, 1, 8, 0, 0]
    assert rows.tolist() == [5 * 4 + 2, 2 * 4, 8 * 4 + 3, 0, 0]
    assert (table.dtype, lengths.dtype, rows.dtype) == (torch.int32, torch.int32, torch.int64)
