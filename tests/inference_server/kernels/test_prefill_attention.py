"""The prefill attention kernel against torch's attention in float32."""

import pytest
import torch
from torch import Tensor

from inference_server.attention.torch_attention import AttentionSpec, causal_attention, causal_mask
from inference_server.kernels import ops
from inference_server.kernels.isa.choice import obstacle

pytestmark = pytest.mark.skipif(obstacle() is not None, reason="this CPU has no kernels")

BLOCK_SIZE = 32
SPEC = AttentionSpec(0.125)


class Prompt:
    """A sequence's keys and values in shuffled blocks, NaN wherever nothing was written."""

    def __init__(self, num_keys: int, *, kv_heads: int = 3, width: int = 64) -> None:
        torch.manual_seed(num_keys)
        num_blocks = -(-num_keys // BLOCK_SIZE)
        self.blocks = torch.randperm(num_blocks + 3)[:num_blocks].int()
        self.key, self.value = (torch.randn(num_keys, kv_heads, width).bfloat16() for _ in range(2))
        self.keys, self.values = (
            torch.full((num_blocks + 3, BLOCK_SIZE, kv_heads, width), float("nan"), dtype=torch.bfloat16)
            for _ in range(2)
        )
        places = torch.arange(num_keys)
        rows = self.blocks[places // BLOCK_SIZE].long(), places % BLOCK_SIZE
        self.keys[rows], self.values[rows] = self.key, self.value

    def attend(self, query: Tensor, start: int) -> Tensor:
        found = ops.paged_prefill_attention(query, self.keys, self.values, self.blocks, start, SPEC.scaling)
        assert found is not None
        return found

    def wanted(self, query: Tensor) -> Tensor:
        """Return torch's attention in float32. The queries belong to the newest tokens."""
        rows, key, value = (each.bfloat16().float() for each in (query, self.key, self.value))
        return causal_attention(rows, key, value, SPEC, causal_mask(len(rows), len(key), SPEC, rows))


def queries(num_tokens: int, dtype: torch.dtype, *, heads: int = 9, width: int = 64) -> Tensor:
    torch.manual_seed(num_tokens)
    return torch.randn(num_tokens, heads, width).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(("start", "length"), [(0, 1), (0, 31), (0, 33), (3, 5), (100, 40), (127, 130), (200, 513)])
def test_tokens_attend_to_themselves_and_earlier_tokens(start: int, length: int, dtype: torch.dtype) -> None:
    prompt, query = Prompt(start + length), queries(length, dtype)
    found = prompt.attend(query, start)
    assert found.dtype is dtype
    torch.testing.assert_close(found.float(), prompt.wanted(query), rtol=0, atol=0.02)


@pytest.mark.parametrize(("heads", "kv_heads", "width"), [(4, 4, 32), (8, 1, 64), (6, 2, 96), (4, 2, 128), (2, 1, 256)])
def test_heads_of_any_number_and_width(heads: int, kv_heads: int, width: int) -> None:
    prompt = Prompt(150, kv_heads=kv_heads, width=width)
    query = queries(50, torch.float32, heads=heads, width=width)
    torch.testing.assert_close(prompt.attend(query, 100), prompt.wanted(query), rtol=0, atol=0.05)


def test_a_tokens_result_is_bit_identical_for_any_chunking() -> None:
    prompt, query = Prompt(300), queries(300, torch.bfloat16)
    whole = prompt.attend(query, 0)
    for border in (1, 37, 128, 299):
        pieces = [prompt.attend(query[:border].contiguous(), 0), prompt.attend(query[border:].contiguous(), border)]
        assert torch.equal(torch.cat(pieces), whole)


@pytest.mark.parametrize(
    ("dtype", "width", "block_size"),
    [(torch.float32, 64, 32), (torch.bfloat16, 48, 32), (torch.bfloat16, 64, 16)],
    ids=["keys in float32", "a width of 48", "blocks of 16"],
)
def test_unsupported_tensors_are_computed_by_torch(dtype: torch.dtype, width: int, block_size: int) -> None:
    keys = torch.zeros(2, block_size, 3, width, dtype=dtype)
    query = torch.zeros(4, 9, width, dtype=dtype)
    blocks = torch.zeros(1, dtype=torch.int32)
    assert ops.paged_prefill_attention(query, keys, keys, blocks, 0, 0.1) is None


def test_scores_that_vary_by_hundreds_give_torchs_result() -> None:
    prompt, query = Prompt(700), queries(60, torch.float32)
    prompt.key[::90] *= 40
    rows = torch.arange(700)
    prompt.keys[prompt.blocks[rows // BLOCK_SIZE].long(), rows % BLOCK_SIZE] = prompt.key
    torch.testing.assert_close(prompt.attend(query, 640), prompt.wanted(query), rtol=0, atol=0.05)


def test_a_nan_in_one_query_does_not_affect_the_others() -> None:
    prompt, query = Prompt(100), queries(40, torch.float32)
    whole = prompt.attend(query, 60)
    query[7, 2] = float("nan")
    found = prompt.attend(query, 60)
    assert found[7, 2].isnan().all()
    found[7, 2] = whole[7, 2]
    assert torch.equal(found, whole)
