"""Decode and prefill in one forward pass, where the engine supports it."""

import asyncio

import pytest

from inference_server.generation import Completed
from inference_server.kernels.isa.choice import obstacle
from inference_server.model.runner import ModelRunner
from tests.support.engines import collect, entry, hosting, request

pytestmark = pytest.mark.skipif(obstacle() is not None, reason="this CPU has no kernels")


@pytest.fixture
def hosted(tiny_model, tmp_path):
    folder = tiny_model("llama-2-heads-of-32")
    return lambda **settings: hosting(entry(folder, precision="bfloat16"), cache_dir=tmp_path, **settings)


def prompt(length):
    return [(7 * index) % 400 for index in range(length)]


async def replies(model):
    """Return the replies to a running stream, and to a long prompt and a short one that arrive later."""
    async with model.submit(request(prompt(5), max_tokens=60)) as running:
        events = aiter(running)
        await anext(events)
        later = await asyncio.gather(*(collect(model, request(prompt(length), max_tokens=8)) for length in (300, 20)))
        text = "".join([event.text async for event in events if not isinstance(event, Completed)])
    return [text, *(reply.text for reply in later)]


def counted(monkeypatch):
    calls = []
    both = ModelRunner.mixed
    monkeypatch.setattr(ModelRunner, "mixed", lambda *arguments: calls.append(1) or both(*arguments))
    return calls


async def test_a_prompt_that_joins_shares_its_passes_and_changes_no_reply(hosted, monkeypatch):
    shared = counted(monkeypatch)
    async with hosted() as models:
        together = await replies(models["tiny"])
    assert shared
    monkeypatch.setattr(ModelRunner, "supports_mixed_batch", False)
    async with hosted() as models:
        assert await replies(models["tiny"]) == together


async def test_batch_invariant_passes_are_not_shared(hosted, monkeypatch):
    shared = counted(monkeypatch)
    async with hosted(batch_invariant=True) as models:
        await replies(models["tiny"])
    assert not shared


async def test_a_failing_shared_pass_is_retried_separately(hosted, monkeypatch):
    async with hosted() as models:
        expected = await replies(models["tiny"])

        def fail(*_):
            raise RuntimeError("device trouble")

        monkeypatch.setattr(ModelRunner, "mixed", fail)
        assert await replies(models["tiny"]) == expected
