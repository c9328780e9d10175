from collections.abc import AsyncIterator, Iterator

import pytest
import torch

from inference_server.serving.hosted_model import HostedModel
from tests.support.engines import entry, hosting


@pytest.fixture
async def llama(tiny_model) -> AsyncIterator[HostedModel]:
    """Host the tiny Llama with the limits of llama-2-7b-chat-int8, four slots and a short wait queue."""
    settings = {"max_running_seqs": 4, "max_waiting_seqs": 3, "prefill_chunk_tokens": 64, "prefill_idle_tokens": 64}
    async with hosting(entry(tiny_model("llama-2")), **settings) as models:
        yield models["tiny"]


@pytest.fixture(params=[1, 2])
def num_threads(request: pytest.FixtureRequest) -> Iterator[None]:
    """Run a test with one thread of torch, and again with two."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)
