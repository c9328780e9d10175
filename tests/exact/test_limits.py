"""The announced limits in full, on the default model: 2048 in and 1800 out, 3072 in and 2500 out."""

import asyncio

import pytest

from inference_server.catalog import read_catalog
from inference_server.config import DEFAULT_CATALOG
from inference_server.errors import PromptTooLong
from inference_server.sequence import FinishReason
from tests.engines import collect, hosting, request
from tests.exact.reference import CORPUS

LIMITS = {"@cf/meta/llama-2-7b-chat-int8": (2048, 1800), "@cf/meta/llama-2-7b-chat-fp16": (3072, 2500)}


@pytest.mark.exact
async def test_both_models_take_and_give_exactly_what_was_announced():
    entries = [entry for entry in read_catalog(DEFAULT_CATALOG) if entry.name in LIMITS]
    async with hosting(*entries, max_running_seqs=1) as models:
        await asyncio.gather(*(check(models[name], *limits) for name, limits in LIMITS.items()))


async def check(model, context_length: int, sequence_length: int) -> None:
    text = model.prompts.encode_text(CORPUS.read_text() * 2)
    prompt = text[:context_length]
    with pytest.raises(PromptTooLong):
        model.check_length(context_length + 1)
    model.check_length(context_length)
    reply = await collect(model, request(prompt, max_tokens=model.max_tokens(context_length, 10**6)))
    assert reply.completed.finish_reason is FinishReason.LENGTH
    assert reply.completed.usage.completion_tokens == sequence_length
    assert reply.completed.usage.prompt_tokens == context_length
    print(f"\n{model.entry.name}: {context_length} in, {sequence_length} out, {reply.completed.timings}")
