import pytest
import torch

from inference_server.gpu.kernels import decode_attention
from inference_server.gpu.kernels.attention_cases import SHAPES, WITH_SINKS
from inference_server.gpu.kernels.attention_tiles import Device
from inference_server.gpu.kernels.compile_case import CAPABILITIES, SHARED_MEMORY_BYTES
from inference_server.gpu.kernels.decode_attention import chosen_splits, paged_decode_attention
from tests.inference_server.gpu.kernels.paged import (
    BLOCK_SIZE,
    Heads,
    Limits,
    decode_error,
    random_cache,
    random_queries,
)

# Rounding of the result is most of it: values are about 1, and half a unit of the last digit is 2**-12 and 2**-9.
TOLERANCE = {torch.float16: 1e-3, torch.bfloat16: 8e-3}
SMALL = Heads(3, 1, 32)


@pytest.mark.parametrize("splits", [0, 1, 2, 8])
def test_results_equal_those_of_torch(splits: int) -> None:
    lengths = [0, 1, BLOCK_SIZE - 1, BLOCK_SIZE + 1, 200]
    assert decode_error(SMALL, lengths, torch.float16, splits=splits) < TOLERANCE[torch.float16]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_every_kv_head_has_its_own_keys(dtype: torch.dtype) -> None:
    assert decode_error(Heads(4, 2, 64), [40, 70], dtype) < TOLERANCE[dtype]


@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("limits", [Limits(40), Limits(None, 5.0), Limits(1)], ids=str)
def test_windows_and_softcaps_equal_those_of_torch(limits: Limits, splits: int) -> None:
    assert decode_error(SMALL, [30, 150], torch.float16, limits, splits) < TOLERANCE[torch.float16]


@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("limits", [Limits(), Limits(40)], ids=str)
def test_sinks_equal_those_of_torch(limits: Limits, splits: int) -> None:
    error = decode_error(Heads(4, 2, 32), [1, 30, 150, 0], torch.float16, limits, splits, has_sinks=True)
    assert error < TOLERANCE[torch.float16]


@pytest.mark.parametrize("heads", [Heads(3, 1, 80), Heads(2, 2, 96), Heads(20, 1, 8), Heads(2, 1, 256)], ids=str)
def test_any_head_dim_and_group_of_heads_is_supported(heads: Heads) -> None:
    assert decode_error(heads, [33, 70], torch.float16, splits=2) < TOLERANCE[torch.float16]


@pytest.mark.parametrize("capability", [75, 86])
def test_tiles_of_smaller_devices_give_the_same_results(capability: int, monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(capability, SHARED_MEMORY_BYTES[capability], 40)
    monkeypatch.setattr(decode_attention, "device_of", lambda _: device)
    assert decode_error(SMALL, [1, 100], torch.float16, splits=2) < TOLERANCE[torch.float16]


@pytest.mark.parametrize("block_size", [16, 48, 256])
def test_a_block_may_have_any_multiple_of_16_tokens(block_size: int) -> None:
    cache = random_cache(SMALL, [100], torch.float16, block_size)
    query = random_queries(1, SMALL, torch.float16)
    key, value = (cached[cache.table[0].long()].flatten(0, 1)[:100].float() for cached in cache[:2])
    key, value = (cached.repeat_interleave(3, dim=1) for cached in (key, value))
    weights = torch.einsum("hd,khd->hk", query[0].float(), key * 0.1).softmax(-1)
    expected = torch.einsum("hk,khd->hd", weights, value)
    result = paged_decode_attention(query, *cache, 0.1, None, None, 2)
    torch.testing.assert_close(result[0].float(), expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("splits", [1, 4])
def test_a_sequence_of_length_0_has_zeros(splits: int) -> None:
    cache = random_cache(SMALL, [0, 10], torch.float16)
    result = paged_decode_attention(random_queries(2, SMALL, torch.float16), *cache, 1.0, None, None, splits)
    assert not result[0].any()


@pytest.mark.parametrize("splits", [1, 4])
def test_a_sequence_has_the_same_bits_whatever_the_other_sequences_are(splits: int) -> None:
    lengths = [100, 0, 33]
    cache = random_cache(SMALL, lengths, torch.float16)
    query = random_queries(len(lengths), SMALL, torch.float16)
    together = paged_decode_attention(query, *cache, 0.2, None, None, splits)
    for row in range(len(lengths)):
        rows = (query[row : row + 1], *cache[:2], cache.table[row : row + 1], cache.lengths[row : row + 1])
        assert torch.equal(paged_decode_attention(*rows, 0.2, None, None, splits)[0], together[row])


def test_tables_and_lengths_may_have_any_stride() -> None:
    cache = random_cache(SMALL, [50, 20], torch.float16)
    staging = torch.full((2, cache.table.shape[1] + 3), 7, dtype=torch.int32)
    staging[:, 2], staging[:, 3:] = cache.lengths, cache.table
    query = random_queries(2, SMALL, torch.float16)
    expected = paged_decode_attention(query, *cache, 0.2, None, None, 2)
    result = paged_decode_attention(query, *cache[:2], staging[:, 3:], staging[:, 2], 0.2, None, None, 2)
    assert torch.equal(result, expected)


@pytest.mark.parametrize(
    ("num_sequences", "num_kv_heads", "max_keys", "expected"),
    [(1, 32, 4096, 8), (1, 8, 4096, 32), (1, 8, 512, 4), (4, 32, 4096, 2), (64, 8, 8192, 1), (1, 3, 64, 1)],
)
def test_splits_fill_the_multiprocessors(num_sequences: int, num_kv_heads: int, max_keys: int, expected: int) -> None:
    assert chosen_splits(num_sequences, num_kv_heads, max_keys, num_multiprocessors=132) == expected


@pytest.mark.rehearsal
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_every_models_shape_equals_torch(shape: tuple[str, int, int, int], dtype: torch.dtype) -> None:
    heads = Heads(*shape[1:])
    lengths = [0, 1, BLOCK_SIZE - 1, BLOCK_SIZE + 1, 300]
    has_sinks = shape[0] == WITH_SINKS
    errors = [decode_error(heads, lengths, dtype, Limits(), 2, has_sinks=has_sinks)]
    if dtype == torch.float16:
        # The kernel runs once for each KV head, which takes the interpreter long. Four of them are enough here.
        group, few = heads.num_heads // heads.num_kv_heads, min(heads.num_kv_heads, 4)
        heads = heads._replace(num_heads=few * group, num_kv_heads=few)
        variants = [(Limits(), 0), (Limits(), 1), (Limits(), 8), (Limits(100, 30.0), 2)]
        errors += [
            decode_error(heads, lengths, dtype, limits, splits, has_sinks=has_sinks) for limits, splits in variants
        ]
    print(f"\npaged_decode_attention {shape[0]} {dtype}: largest error {max(errors):.1e}")
    assert max(errors) < TOLERANCE[dtype]


def test_every_device_has_a_case_for_every_shape() -> None:
    cases = decode_attention.compile_cases()
    for capability in CAPABILITIES:
        names = [case.name for case in cases if capability in case.capabilities]
        assert all(any(shape.name in name for name in names) for shape in SHAPES)
