import pytest
import torch

from inference_server.gpu.kernels import prefill_attention
from inference_server.gpu.kernels.attention_cases import SHAPES, WITH_SINKS
from inference_server.gpu.kernels.attention_tiles import Device
from inference_server.gpu.kernels.compile_case import CAPABILITIES, SHARED_MEMORY_BYTES
from inference_server.gpu.kernels.prefill_attention import paged_prefill_attention
from inference_server.model.runner import WARM_UP_LENGTHS
from tests.inference_server.gpu.kernels.paged import Heads, Limits, prefill_error, random_cache, random_queries

# Values are about 1, but the first tokens see few keys: results up to 4, so half a unit of the last digit is up to 4 times
# that of the decode tests.
TOLERANCE = {torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
SMALL = Heads(3, 1, 32)
# Number of new tokens and length of each sequence: whole prompts, one token, and prompts with a cached start.
SEGMENTS = [(20, 20), (1, 33), (0, 10), (45, 110), (31, 32)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_results_equal_those_of_torch(dtype: torch.dtype) -> None:
    assert prefill_error(Heads(4, 2, 32), SEGMENTS, dtype) < TOLERANCE[dtype]


@pytest.mark.parametrize("limits", [Limits(1), Limits(40), Limits(None, 5.0), Limits(70, 5.0), Limits(1000)], ids=str)
def test_windows_and_softcaps_equal_those_of_torch(limits: Limits) -> None:
    assert prefill_error(SMALL, [(50, 150), (3, 3)], torch.float16, limits) < TOLERANCE[torch.float16]


@pytest.mark.parametrize("limits", [Limits(), Limits(40)], ids=str)
def test_sinks_equal_those_of_torch(limits: Limits) -> None:
    error = prefill_error(Heads(4, 2, 32), SEGMENTS, torch.float16, limits, has_sinks=True)
    assert error < TOLERANCE[torch.float16]


@pytest.mark.parametrize("heads", [Heads(3, 1, 80), Heads(2, 2, 96), Heads(20, 1, 8), Heads(2, 1, 256)], ids=str)
def test_any_head_dim_and_group_of_heads_is_supported(heads: Heads) -> None:
    assert prefill_error(heads, [(20, 90), (4, 4)], torch.float16) < TOLERANCE[torch.float16]


@pytest.mark.parametrize("tokens", [5, 6, 22, 43])
def test_segments_of_every_tile_size_equal_torch(tokens: int) -> None:
    assert prefill_error(Heads(3, 1, 16), [(tokens, tokens + 30)], torch.float16) < TOLERANCE[torch.float16]


@pytest.mark.parametrize("capability", [75, 86])
def test_tiles_of_smaller_devices_give_the_same_results(capability: int, monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(capability, SHARED_MEMORY_BYTES[capability], 40)
    monkeypatch.setattr(prefill_attention, "device_of", lambda _: device)
    assert prefill_error(SMALL, [(20, 60)], torch.float16, Limits(30)) < TOLERANCE[torch.float16]


def test_tables_and_lengths_may_have_any_stride() -> None:
    cache = random_cache(SMALL, [50, 20], torch.float16)
    query = random_queries(14, SMALL, torch.float16)
    starts = torch.tensor([0, 10, 14], dtype=torch.int32)
    expected = paged_prefill_attention(query, *cache[:3], starts, cache.lengths, 10, 0.2, None, None)
    staging = torch.full((2, cache.table.shape[1] + 3), 7, dtype=torch.int32)
    staging[:, 2], staging[:, 3:] = cache.lengths, cache.table
    result = paged_prefill_attention(query, *cache[:2], staging[:, 3:], starts, staging[:, 2], 10, 0.2, None, None)
    assert torch.equal(result, expected)


def test_a_segment_has_the_same_bits_whatever_the_other_segments_are() -> None:
    cache = random_cache(SMALL, [90, 20], torch.float16)
    query = random_queries(50, SMALL, torch.float16)
    starts = torch.tensor([0, 40, 50], dtype=torch.int32)
    together = paged_prefill_attention(query, *cache[:3], starts, cache.lengths, 40, 0.2, None, None)
    rows = (query[:40], *cache[:2], cache.table[:1], starts[:2], cache.lengths[:1])
    assert torch.equal(paged_prefill_attention(*rows, 40, 0.2, None, None), together[:40])


def test_no_tokens_give_no_results() -> None:
    cache = random_cache(SMALL, [5], torch.float16)
    starts = torch.zeros(2, dtype=torch.int32)
    query = random_queries(0, SMALL, torch.float16)
    assert paged_prefill_attention(query, *cache[:3], starts, cache.lengths, 0, 1.0, None, None).shape == query.shape


@pytest.mark.rehearsal
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_every_models_shape_equals_torch(shape: tuple[str, int, int, int], dtype: torch.dtype) -> None:
    heads = Heads(*shape[1:])
    segments = [(1, 1), (33, 33), (31, 290), (130, 130)]
    cases = [Limits(), Limits(100, 30.0)] if dtype == torch.float16 else [Limits()]
    errors = [prefill_error(heads, segments, dtype, limits, has_sinks=shape[0] == WITH_SINKS) for limits in cases]
    print(f"\npaged_prefill_attention {shape[0]} {dtype}: largest error {max(errors):.1e}")
    assert max(errors) < TOLERANCE[dtype]


def test_every_device_has_a_case_for_every_shape() -> None:
    cases = prefill_attention.compile_cases()
    for capability in CAPABILITIES:
        names = [case.name for case in cases if capability in case.capabilities]
        assert all(any(shape.name in name for name in names) for shape in SHAPES)


@pytest.mark.parametrize("capability", [75, 86, 90])
@pytest.mark.parametrize("group", [1, 2, 3, 4, 5, 7, 8])
def test_the_warm_up_compiles_the_kernel_for_every_number_of_rows(group: int, capability: int) -> None:
    device = Device(capability, SHARED_MEMORY_BYTES[capability], 132)
    compiled = {
        prefill_attention.launch_constants(group, 1, 128, 32, length * group, False, device)[0]["ROWS"]
        for length in WARM_UP_LENGTHS
    }
    assert compiled == set(prefill_attention.row_counts(128, device))
