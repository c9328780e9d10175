"""Embeddings in the number format of a file: decoded rows, and tokens outside of the vocabulary."""

import pytest
import torch

from inference_server.cpu.embedding import StoredEmbedding, rows_kernel
from inference_server.kernels.isa.choice import chosen
from inference_server.weights.gguf.formats import format_of
from tests.support.models.gguf_files import random_blocks

pytestmark = pytest.mark.skipif(chosen() is None, reason="this CPU has no kernels")
Q8_0 = 8  # GGML's number of the format


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def embedding(request):
    rows = torch.from_numpy(random_blocks("Q8_0", 10, 3))
    return StoredEmbedding(rows, rows_kernel("q8_0", 96, request.param), 96, request.param)


def test_decoded_rows_are_those_of_the_whole_table(embedding):
    table = format_of(Q8_0).weights(embedding.rows).to(embedding.dtype)
    assert torch.equal(embedding.plain(), table)
    assert torch.equal(embedding(torch.tensor([[9, 0], [3, 3]])), table[torch.tensor([[9, 0], [3, 3]])])
    assert embedding(torch.zeros(1, 0, dtype=torch.int64)).shape == (1, 0, 96)


@pytest.mark.parametrize("token", [-1, 10])
def test_a_token_outside_of_the_vocabulary_is_refused(embedding, token):
    with pytest.raises(IndexError, match="size of the vocabulary"):
        embedding.write([0, token], torch.empty(2, 96, dtype=embedding.dtype))


@pytest.mark.parametrize(("name", "width", "dtype"), [("f16", 96, torch.float32), ("q8_0", 96, torch.float16)])
def test_other_formats_and_types_have_no_kernel(name, width, dtype):
    assert rows_kernel(name, width, dtype) is None
