"""Requests with LoRA adapters through the engine: batches, the prefix cache, and the start of a server."""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoConfig

from inference_server.errors import UnknownAdapter, UnsupportedModel
from inference_server.serving.catalog import CatalogEntry
from tests.support.engines import collect, entry, hosting, request
from tests.support.models.adapters import linear_shapes, write_adapter

PROMPT = [259 + (3 * place) % 140 for place in range(70)]


@pytest.fixture
def hosted(tiny_model: Callable[[str], Path], tmp_path: Path) -> Iterator[CatalogEntry]:
    folder = tiny_model("llama-3")
    shapes = linear_shapes(AutoConfig.from_pretrained(folder))
    adapters = {name: write_adapter(tmp_path / name, shapes, seed=seed) for seed, name in enumerate(("one", "two"))}
    yield replace(entry(folder), adapters=adapters)


async def test_a_batch_has_requests_with_and_without_adapters(hosted: CatalogEntry) -> None:
    async with hosting(hosted) as models:
        model = models["tiny"]
        requests = [request(PROMPT, adapter=model.adapter(name), max_tokens=8) for name in ("", "one", "two")]
        alone = [(await collect(model, each)).text for each in requests]
        together = await asyncio.gather(*(collect(model, each) for each in requests))
    assert len(set(alone)) == 3
    assert [reply.text for reply in together] == alone


async def test_prompts_share_blocks_only_with_the_same_adapter(hosted: CatalogEntry) -> None:
    async with hosting(hosted) as models:
        cached = []
        for adapter in (0, 1, 2, 1, 0):
            reply = await collect(models["tiny"], request(PROMPT, adapter=adapter, max_tokens=2))
            assert reply.completed is not None
            cached.append(reply.completed.usage.cached_tokens)
    assert cached == [0, 0, 0, 64, 64]


async def test_entries_with_the_same_weights_share_an_engine_and_have_their_own_adapters(hosted: CatalogEntry) -> None:
    first = replace(hosted, adapters={"a": hosted.adapters["one"]})
    second = replace(hosted, name="second", adapters={"a": hosted.adapters["two"], "b": hosted.adapters["one"]})
    async with hosting(first, second) as models:
        assert models["tiny"].engine is models["second"].engine
        assert [models["tiny"].adapter("a"), models["second"].adapter("a"), models["second"].adapter("b")] == [1, 2, 1]
        with pytest.raises(UnknownAdapter, match="the model tiny has no LoRA adapter 'b'; its adapters are a"):
            models["tiny"].adapter("b")


async def test_an_adapter_that_does_not_fit_ends_the_start(hosted: CatalogEntry, tmp_path: Path) -> None:
    other = write_adapter(tmp_path / "other", {"model.layers.0.self_attn.q_proj": (8, 8)})
    with pytest.raises(Exception, match=f"the adapter {other} belongs to another model") as error:
        async with hosting(replace(hosted, adapters={"other": other})):
            pass
    assert not isinstance(error.value, UnsupportedModel) and "tiny" in str(error.value)
