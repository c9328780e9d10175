"""The prefill attention kernel of every instruction set against attention in float64."""

from functools import cache, partial
from typing import Any

import pytest
import torch
from torch import Tensor

from inference_server.kernels.attention.prefill import make_prefill_attention
from inference_server.kernels.isa import choice
from inference_server.kernels.jit import arguments
from tests.support.kernels import compiled_kernels
from tests.support.kernels.compiled_kernels import aligned

SCALING = 0.125
every_instruction_set = pytest.mark.parametrize("name", compiled_kernels.instruction_set_names())


class Cache:
    """Keys and values of several sequences in shuffled blocks, NaN wherever nothing was written."""

    def __init__(self, lengths: list[int], *, block_size: int = 32, kv_heads: int = 3, width: int = 64) -> None:
        torch.manual_seed(sum(lengths))
        self.kept = [[torch.randn(length, kv_heads, width).bfloat16() for _ in range(2)] for length in lengths]
        num_blocks = [-(-length // block_size) for length in lengths]
        self.tables = list(torch.randperm(sum(num_blocks)).int().split(num_blocks))
        self.keys, self.values = (
            torch.full((sum(num_blocks), block_size, kv_heads, width), float("nan"), dtype=torch.bfloat16)
            for _ in range(2)
        )
        for (key, value), table in zip(self.kept, self.tables, strict=True):
            places = torch.arange(len(key))
            rows = table[places // block_size].long(), places % block_size
            self.keys[rows], self.values[rows] = key, value

    def attend(
        self, run: Any, query: Tensor, starts: list[int], lengths: list[int], sinks: Tensor | None = None
    ) -> Tensor:
        words, bytes_per_value = arguments.prefill_segments(starts, lengths, self.tables, 0)
        workspace = aligned(torch.full((bytes_per_value * self.keys[0, 0].numel(),), 255, dtype=torch.uint8))
        words[0] = workspace.data_ptr()
        segments, out = torch.tensor(words), torch.full_like(query, float("nan"))
        run(arguments.prefill_attention(query, self.keys, self.values, segments, out, SCALING, sinks))
        return out

    def wanted(self, query: Tensor, starts: list[int], lengths: list[int], sinks: Tensor | None = None) -> Tensor:
        """Return the attention in float64."""
        results = []
        pieces = query.bfloat16().double().split(lengths)
        for (key, value), start, rows in zip(self.kept, starts, pieces, strict=True):
            group = rows.shape[1] // key.shape[1]
            key, value = (each.double().repeat_interleave(group, 1) for each in (key, value))
            scores = torch.einsum("qhd,khd->hqk", rows, key) * SCALING
            later = torch.arange(len(key)) > (start + torch.arange(len(rows)))[:, None]
            scores = scores.masked_fill(later, -torch.inf)
            if sinks is not None:
                scores = torch.cat([scores, sinks.double()[:, None, None].expand(-1, len(rows), 1)], -1)
            weights = scores.softmax(-1)[..., : len(key)]
            results.append(torch.einsum("hqk,khd->qhd", weights, value))
        return torch.cat(results)


@cache
def kernel(name: str, is_bf16: bool) -> Any:
    isa = choice.chosen(name)
    assert isa is not None
    return compiled_kernels.load(make_prefill_attention(is_bf16), isa)


def queries(num_tokens: int, *, heads: int = 9, width: int = 64, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    torch.manual_seed(num_tokens)
    return torch.randn(num_tokens, heads, width).to(dtype)


@every_instruction_set
@pytest.mark.parametrize("block_size", [32, 64])
def test_tokens_of_several_prompts_attend_to_themselves_and_earlier_tokens(name: str, block_size: int) -> None:
    starts, lengths = [0, 0, 3, 100, 127, 200], [1, 33, 5, 40, 130, 313]
    cache = Cache([start + length for start, length in zip(starts, lengths, strict=True)], block_size=block_size)
    query = queries(sum(lengths))
    found = cache.attend(kernel(name, True), query, starts, lengths)
    torch.testing.assert_close(found.double(), cache.wanted(query, starts, lengths), rtol=0, atol=0.02)


@every_instruction_set
@pytest.mark.parametrize(("heads", "kv_heads", "width"), [(4, 4, 32), (6, 2, 96), (2, 1, 256)])
def test_heads_of_any_number_and_width(name: str, heads: int, kv_heads: int, width: int) -> None:
    cache = Cache([150], kv_heads=kv_heads, width=width)
    query = queries(50, heads=heads, width=width)
    found = cache.attend(kernel(name, True), query, [100], [50])
    torch.testing.assert_close(found.double(), cache.wanted(query, [100], [50]), rtol=0, atol=0.05)


@every_instruction_set
def test_every_head_has_its_sink(name: str) -> None:
    starts, lengths, sinks = [0, 100], [33, 40], torch.tensor([-40.0, -2.0, 0.0, 1.0, 2.0, 3.0, 5.0, 9.0, 40.0])
    cache, query = Cache([33, 140]), queries(73)
    found = cache.attend(kernel(name, True), query, starts, lengths, sinks)
    torch.testing.assert_close(found.double(), cache.wanted(query, starts, lengths, sinks), rtol=0, atol=0.02)


@pytest.mark.parametrize("name", compiled_kernels.instruction_set_names()[-1:])
def test_queries_in_float32_are_rounded_to_bfloat16(name: str) -> None:
    cache, query = Cache([70]), queries(70, dtype=torch.float32)
    found = cache.attend(kernel(name, False), query, [0], [70])
    rounded = cache.attend(kernel(name, True), query.bfloat16(), [0], [70])
    assert torch.equal(found.bfloat16(), rounded)


@every_instruction_set
def test_a_tokens_result_is_bit_identical_for_any_chunking(name: str) -> None:
    cache, query = Cache([300]), queries(300)
    attend = partial(cache.attend, kernel(name, True))
    whole = attend(query, [0], [300])
    for border in (1, 37, 128, 299):
        pieces = [
            attend(query[:border].clone(), [0], [border]),
            attend(query[border:].clone(), [border], [300 - border]),
        ]
        assert torch.equal(torch.cat(pieces), whole)


@every_instruction_set
def test_scores_that_vary_by_hundreds_give_the_exact_result(name: str) -> None:
    cache, query = Cache([400]), queries(60)
    cache.kept[0][0][::90] *= 40
    places = torch.arange(400)
    cache.keys[cache.tables[0][places // 32].long(), places % 32] = cache.kept[0][0]
    found = cache.attend(kernel(name, True), query, [340], [60])
    torch.testing.assert_close(found.double(), cache.wanted(query, [340], [60]), rtol=0, atol=0.05)


@every_instruction_set
def test_a_nan_in_one_query_does_not_affect_the_others(name: str) -> None:
    cache, query = Cache([100]), queries(40)
    whole = cache.attend(kernel(name, True), query, [60], [40])
    query[7, 2] = float("nan")
    found = cache.attend(kernel(name, True), query, [60], [40])
    assert found[7, 2].isnan().all()
    found[7, 2] = whole[7, 2]
    assert torch.equal(found, whole)
