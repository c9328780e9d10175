"""Tests that the engine detects and reports a hung model, and retries smaller batches after memory ran out."""

import asyncio
import threading

import pytest
import torch

from inference_server.errors import GenerationFailed, ModelNotReady
from inference_server.generation import Started
from inference_server.model.runner import ModelRunner
from tests.inference_server.engine.native.test_engine import prompt
from tests.support.engines import collect, request, until


async def test_a_stalled_thread_is_detected(llama, monkeypatch):
    hung = threading.Event()
    monkeypatch.setattr(llama.engine.runner, "prefill", lambda *_: hung.wait(10))
    assert llama.engine.seconds_without_progress == 0
    async with llama.submit(request(prompt(5))):
        await until(lambda: llama.engine.seconds_without_progress > 0.2)
        llama.engine.is_stalled = True
        with pytest.raises(ModelNotReady):
            llama.submit(request(prompt(5)))
        hung.set()


async def test_aborted_requests_get_an_error(llama, monkeypatch):
    hung = threading.Event()
    monkeypatch.setattr(llama.engine.runner, "prefill", lambda *_: hung.wait(10))
    async with llama.submit(request(prompt(5))) as reply:
        assert isinstance(await anext(reply), Started)
        llama.engine.is_stalled = True
        llama.engine.abandon()
        with pytest.raises(GenerationFailed):
            await anext(reply)
    hung.set()


async def test_out_of_memory_is_retried_with_smaller_batches(llama, monkeypatch):
    alone = [await collect(llama, request(prompt(20, n), max_tokens=12)) for n in range(4)]
    decode, most = llama.engine.runner.decode, []

    def short_of_memory(tokens):
        most.append(len(tokens))
        if len(tokens) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return decode(tokens)

    monkeypatch.setattr(ModelRunner, "supports_mixed_batch", False)
    monkeypatch.setattr(llama.engine.runner, "decode", short_of_memory)
    replies = await asyncio.gather(*(collect(llama, request(prompt(20, n), max_tokens=12)) for n in range(4)))
    assert max(most) > 2
    assert [reply.text for reply in replies] == [reply.text for reply in alone]


async def test_a_request_too_large_for_memory_fails_alone(llama, monkeypatch):
    prefill = llama.engine.runner.prefill

    def too_large(pieces):
        if any(len(piece.token_ids) > 40 for piece in pieces):
            raise MemoryError
        return prefill(pieces)

    monkeypatch.setattr(ModelRunner, "supports_mixed_batch", False)
    monkeypatch.setattr(llama.engine.runner, "prefill", too_large)
    with pytest.raises(GenerationFailed):
        await collect(llama, request(prompt(60)))
    assert (await collect(llama, request(prompt(20)))).completed
