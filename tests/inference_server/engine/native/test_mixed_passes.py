"""Mixed passes of the step loop, on any CPU: the runner's mixed pass is replaced by its two separate passes."""

import pytest
import torch

from inference_server.model.runner import ModelRunner
from tests.inference_server.engine.native.test_mixed_batches import replies
from tests.support.engines import entry, hosting


@pytest.fixture
def llama(tiny_model):
    return entry(tiny_model("llama-2"))


def mix(monkeypatch, mixed) -> list[int]:
    """Make every runner use `mixed`. Returns a list that gets an item for each call."""
    calls: list[int] = []
    monkeypatch.setattr(ModelRunner, "supports_mixed_batch", True)
    monkeypatch.setattr(ModelRunner, "mixed", lambda *arguments: calls.append(1) or mixed(*arguments))
    return calls


def both_passes(runner, tokens, pieces):
    return torch.cat([runner.decode(tokens).clone(), runner.prefill(pieces)])


def fail(*_):
    raise RuntimeError("device trouble")


@pytest.mark.parametrize("mixed", [both_passes, fail])
async def test_mixed_passes_change_no_reply(llama, monkeypatch, mixed):
    async with hosting(llama) as models:
        expected = await replies(models["tiny"])
    calls = mix(monkeypatch, mixed)
    async with hosting(llama) as models:
        assert await replies(models["tiny"]) == expected
    assert calls
