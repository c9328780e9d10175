"""With TAILRACE_BATCH_INVARIANT the logits of a request are bit-identical in every batch."""

import asyncio

import pytest

from tests.support.engines import LogitsRecorder, collect, entry, hosting, request

SETTINGS = {"batch_invariant": True, "max_running_seqs": 8, "prefill_chunk_tokens": 32}


def prompt(length: int, first: int = 1) -> list[int]:
    return [(first + 7 * n) % 90 + 3 for n in range(length)]


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "bitsandbytes-int8", "int4"])
async def test_logits_are_the_same_bits_alone_and_in_a_batch(tiny_model, precision):
    prompts = [prompt(5 + 9 * n, first=n) for n in range(12)]
    recorder = LogitsRecorder()
    tiny = entry(tiny_model("llama-2"), precision=precision)
    async with hosting(tiny, builder=recorder, prefix_cache="off", **SETTINGS) as models:
        model = models["tiny"]
        alone = []
        for ids in prompts:
            await collect(model, request(ids, request_id="alone"))
            alone.append(recorder.take("alone"))
        requests = [request(ids, request_id=str(n), max_tokens=16) for n, ids in enumerate(prompts)]
        await asyncio.gather(*(collect(model, one) for one in requests))
    for n, rows in enumerate(alone):
        assert recorder.take(str(n)) == rows, f"prompt {n}"


async def test_logits_are_the_same_bits_with_a_prefix_from_the_cache(tiny_model):
    recorder = LogitsRecorder()
    async with hosting(entry(tiny_model("llama-2")), builder=recorder, **SETTINGS) as models:
        model = models["tiny"]
        first = await collect(model, request(prompt(100), request_id="first", max_tokens=40))
        again = await collect(model, request(prompt(100), request_id="again", max_tokens=40))
    assert (first.completed.usage.cached_tokens, again.completed.usage.cached_tokens) == (0, 96)
    assert recorder.take("again") == recorder.take("first")


async def test_a_request_may_use_every_block(tiny_model):
    limits = {"context_length": 100, "sequence_length": 100}
    async with hosting(entry(tiny_model("llama-2"), **limits), kv_cache_tokens=224, **SETTINGS) as models:
        replies = await asyncio.gather(
            *(collect(models["tiny"], request(prompt(100, first=n), max_tokens=100)) for n in range(3))
        )
        assert models["tiny"].engine.scheduler.num_preemptions == 0
    assert [reply.completed.usage.completion_tokens for reply in replies] == [100, 100, 100]
