"""The attention kernels on emulated Arm CPUs, against torch."""

import pytest
import torch

from inference_server.kernels import reference
from inference_server.kernels.jit import arguments
from tests.inference_server.kernels import test_prefill_kernel as prefill
from tests.inference_server.kernels.test_ops import DTYPES, assert_close, make_cache, ragged

BF16 = torch.bfloat16


@pytest.fixture
def attend(place, call):
    """Return a function that runs `decode_attention` on queries, a cache of test_ops and the kernel's last arguments."""

    def run(query, cache, *options):
        out = place(torch.full((*query.shape[:2], cache.values.shape[-1]), float("nan"), dtype=query.dtype))
        tensors = (query, cache.keys, cache.values, cache.table, cache.lengths)
        block = arguments.attention(*(place(tensor) for tensor in tensors), out, *options)
        call(block, "decode_attention", query.dtype == BF16, cache.keys.dtype == BF16)
        assert_close(out, reference.paged_decode_attention(*tensors, *options))

    return run


@DTYPES
@pytest.mark.parametrize(("num_rows", "group", "width"), [(1, 1, 16), (2, 3, 64), (7, 8, 80)])
def test_decode_attention_is_that_of_torch(num_rows, group, width, dtype, attend):
    cache = make_cache(ragged(num_rows), dtype, kv_heads=2, width=width)
    attend(torch.randn(num_rows, 2 * group, width).to(dtype), cache, 0.1, None, None)


def test_queries_and_cache_may_differ_in_type(attend):
    attend(torch.randn(2, 6, 64), make_cache(ragged(2), BF16), 0.1, None, None)


@pytest.mark.parametrize(("window", "softcap"), [(20, None), (None, 5.0)])
def test_decode_attention_has_a_window_and_a_softcap(window, softcap, attend):
    attend(torch.randn(2, 6, 64).to(BF16), make_cache(ragged(2), BF16), 0.5, window, softcap)


@pytest.mark.parametrize("dtype", [torch.float32, BF16], ids=["float32", "bfloat16"])
def test_prompts_attend_to_themselves_and_earlier_tokens(dtype, place, call):
    starts, lengths = [0, 0, 3, 100], [1, 33, 5, 40]
    cache = prefill.Cache([start + length for start, length in zip(starts, lengths, strict=True)])
    query = place(prefill.queries(sum(lengths), dtype=dtype))
    keys, values, out = place(cache.keys), place(cache.values), place(torch.full_like(query, float("nan")))
    words, size = arguments.prefill_segments(starts, lengths, [place(table) for table in cache.tables], 0)
    words[0] = place(torch.full((size * keys[0, 0].numel(),), 255, dtype=torch.uint8)).data_ptr()
    segments = place(torch.tensor(words))
    block = arguments.prefill_attention(query, keys, values, segments, out, prefill.SCALING)
    call(block, "prefill_attention", dtype == BF16)
    torch.testing.assert_close(out.double(), cache.wanted(query, starts, lengths), rtol=0, atol=0.02)
