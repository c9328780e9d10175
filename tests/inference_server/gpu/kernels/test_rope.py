"""Rotated heads and written cache rows in Triton's interpreter are those of reference.py in float32."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from inference_server.gpu import ops, reference
from tests.inference_server.gpu.kernels.products import relative_error

DTYPES = (torch.float16, torch.bfloat16)
EPS = 1e-6


@dataclass(frozen=True)
class Heads:
    """Numbers of heads of a model, and their width. Qwen 3 normalizes heads."""

    num_heads: int
    num_kv_heads: int
    width: int
    has_norms: bool = False


DEFAULT = Heads(9, 3, 64)
# Computed in every run of the tests; the others take a second each.
SHORT = ("default", "llama-3.1-8b", "qwen3-0.6b and 1.7b", "width 256 with norms", "width 80", "width 2")
MODELS = {
    "default": DEFAULT,
    "llama-2-7b": Heads(32, 32, 128),
    "llama-3.1-8b": Heads(32, 8, 128),
    "qwen3-0.6b and 1.7b": Heads(16, 8, 128, has_norms=True),
    "qwen3-4b and 8b": Heads(32, 8, 128, has_norms=True),
    "qwen3-14b": Heads(40, 8, 128, has_norms=True),
    "qwen3-32b": Heads(64, 8, 128, has_norms=True),
    "width 256": Heads(4, 1, 256),
    "width 256 with norms": Heads(3, 1, 256, has_norms=True),
    "width 80": Heads(5, 1, 80, has_norms=True),
    "width 2": Heads(2, 1, 2),
}


class Case:
    """The arguments of rope_and_write for `heads`, with 3 tokens in a cache of 4 blocks of 16 rows."""

    def __init__(self, heads: Heads, dtype: torch.dtype, rows: Tensor | None = None) -> None:
        generator = torch.Generator().manual_seed(heads.num_heads * heads.width)
        self.heads, self.dtype = heads, dtype
        row_width = (heads.num_heads + 2 * heads.num_kv_heads) * heads.width
        self.qkv = torch.randn(3, row_width, generator=generator).to(dtype)
        angles = torch.rand(3, heads.width // 2, generator=generator) * 6.3
        self.cos, self.sin = angles.cos().repeat(1, 2), angles.sin().repeat(1, 2)
        cache = (4, 16, heads.num_kv_heads, heads.width)
        self.keys, self.values = (torch.randn(cache, generator=generator).to(dtype) for _ in range(2))
        self.rows = torch.tensor([40, 3, 17]) if rows is None else rows
        norms = (torch.randn(heads.width, generator=generator).to(dtype) for _ in range(2))
        self.norms = tuple(norms) if heads.has_norms else (None, None)

    def run(self) -> list[Tensor]:
        """Return the kernel's queries, keys and values."""
        keys, values = self.keys.clone(), self.values.clone()
        counts = self.heads.num_heads, self.heads.num_kv_heads
        query = ops.rope_and_write(self.qkv, self.cos, self.sin, keys, values, self.rows, *counts, *self.norms, EPS)
        return [query, keys, values]

    def expected(self) -> list[Tensor]:
        """Return queries, keys and values computed in float32, from heads that were normalized in the case's dtype."""
        heads = self.qkv.view(3, -1, self.heads.width)
        first, second = self.heads.num_heads, self.heads.num_heads + self.heads.num_kv_heads
        query, key, value = heads.tensor_split([first, second], dim=1)
        if self.norms[0] is not None and self.norms[1] is not None:
            query, key = (reference.rms_norm(*pair, EPS) for pair in ((query, self.norms[0]), (key, self.norms[1])))
        qkv = torch.cat([query, key, value], dim=1).flatten(1).float()
        keys, values, counts = self.keys.float(), self.values.float(), (first, self.heads.num_kv_heads)
        rotated = reference.rope_and_write(
            qkv, self.cos, self.sin, keys, values, self.rows.long(), *counts, None, None, EPS
        )
        return [rotated, keys, values]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in SHORT else [pytest.mark.rehearsal]) for name in MODELS]
)
def test_queries_keys_and_values_equal_those_of_float32(name: str, dtype: torch.dtype) -> None:
    case = Case(MODELS[name], dtype)
    # One rounding; with norms, the float32 sums of squares can also round a normalized number the other way.
    limit = torch.finfo(dtype).eps * (1.5 if case.heads.has_norms else 0.51)
    for actual, expected in zip(case.run(), case.expected(), strict=True):
        assert actual.dtype == dtype
        assert actual.shape == expected.shape
        assert relative_error(actual, expected) < limit


@pytest.mark.parametrize(
    "rows", [torch.tensor([40, 3, 17], dtype=torch.int32), torch.tensor([40, 0, 3, 0, 17, 0])[::2]]
)
def test_rows_may_be_int32_and_have_a_stride(rows: Tensor) -> None:
    for actual, expected in zip(
        Case(DEFAULT, torch.float16, rows).run(), Case(DEFAULT, torch.float16).run(), strict=True
    ):
        assert torch.equal(actual, expected)


def test_only_the_tokens_rows_of_the_cache_change() -> None:
    case = Case(DEFAULT, torch.float16)
    _, keys, values = case.run()
    for before, after in ((case.keys, keys), (case.values, values)):
        changed = (before != after).view(64, -1).any(dim=1).nonzero().flatten()
        assert changed.tolist() == [3, 17, 40]


def test_no_tokens_give_an_empty_result() -> None:
    case = Case(DEFAULT, torch.float16)
    case.qkv, case.rows = case.qkv[:0], case.rows[:0]
    query, keys, _ = case.run()
    assert query.shape == (0, 9, 64)
    assert torch.equal(keys, case.keys)
