"""Errors, deadlines, retries and cancelling, through both doors."""

import asyncio
import contextlib
import pickle

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import BadRequest, RetryInfo

import tailrace
from tailrace import AsyncClient, Client
from tests.docs import errors
from tests.http_bridge.conftest import new_york
from tests.support.processes import free_address
from tests.tailrace.conftest import MODEL

CLASSES = [
    ("UNKNOWN_MODEL", "NOT_FOUND", tailrace.UnknownModelError),
    ("WRONG_TASK", "INVALID_ARGUMENT", tailrace.UnknownModelError),
    ("UNKNOWN_ADAPTER", "NOT_FOUND", tailrace.InvalidRequestError),
    ("INVALID_FIELD", "INVALID_ARGUMENT", tailrace.InvalidRequestError),
    ("PROMPT_TOO_LONG", "INVALID_ARGUMENT", tailrace.PromptTooLongError),
    ("NO_ROOM_FOR_REPLY", "INVALID_ARGUMENT", tailrace.PromptTooLongError),
    ("CAPACITY_EXCEEDED", "RESOURCE_EXHAUSTED", tailrace.OverloadedError),
    ("RATE_LIMITED", "RESOURCE_EXHAUSTED", tailrace.RateLimitError),
    ("CLIENT_TOO_SLOW", "RESOURCE_EXHAUSTED", tailrace.DeadlineError),
    ("SERVER_STOPPING", "UNAVAILABLE", tailrace.UnavailableError),
    ("MODEL_NOT_READY", "UNAVAILABLE", tailrace.UnavailableError),
    ("NOT_RECORDED", "NOT_FOUND", tailrace.NotRecordedError),
    ("GENERATION_FAILED", "INTERNAL", tailrace.GenerationError),
]


def refusing(reason: str, status: str, *details):
    async def refuse(reply):
        await reply.refuse(grpc.StatusCode[status], reason, *details)

    return refuse


async def hesitating(reply):
    """Accept, say a word, and say no more."""
    await reply.accept()
    await reply.start()
    await reply.say("New")
    await reply.forever()


async def breaking(reply):
    """Fail within the reply, so that another server could answer."""
    await reply.accept()
    await reply.start()
    await reply.say("New")
    await reply.refuse(grpc.StatusCode.UNAVAILABLE, "SERVER_STOPPING")


def test_every_reason_of_the_server_has_a_class():
    assert {reason for reason, _, _ in CLASSES} | {"UNAUTHENTICATED"} == errors.reasons()


async def test_each_refusal_has_the_same_class_through_both_doors(async_client, servicer):
    for reason, status, kind in CLASSES:
        servicer.script = refusing(reason, status)
        with pytest.raises(tailrace.TailraceError) as raised:
            await async_client.run("hi", retries=0)
        error = raised.value
        assert type(error) is kind, reason
        assert error.request_id == servicer.request_ids[-1]
        assert (error.http_status is None) != (error.grpc_status is None)


async def test_the_delay_of_the_server_is_in_the_error(client, servicer, in_thread):
    delay = RetryInfo(retry_delay=Duration(seconds=7))
    servicer.script = refusing("RATE_LIMITED", "RESOURCE_EXHAUSTED", delay)
    with pytest.raises(tailrace.RateLimitError) as raised:
        await in_thread(client.run, "hi", retries=0)
    assert (raised.value.retry_after, raised.value.reason) == (7, "RATE_LIMITED")
    assert pickle.loads(pickle.dumps(raised.value)).message == raised.value.message


async def test_a_wrong_field_is_named(client, servicer, in_thread):
    bad = BadRequest(field_violations=[BadRequest.FieldViolation(field="sampling.stop", description="must be short")])
    servicer.script = refusing("INVALID_FIELD", "INVALID_ARGUMENT", bad)
    with pytest.raises(tailrace.InvalidRequestError, match=r"stop'? must be short"):
        await in_thread(client.run, "hi")
    assert len(servicer.requests) == 1


async def test_a_request_that_had_no_capacity_is_tried_again(client, async_client, servicer, in_thread):
    busy = refusing("CAPACITY_EXCEEDED", "RESOURCE_EXHAUSTED")
    servicer.scripts = [busy, busy, new_york, busy, new_york]
    assert (await in_thread(client.run, "hi")).text.startswith("New York")
    assert [text async for text in async_client.stream("hi").texts()][0] == "New"
    servicer.scripts = [busy, busy, busy]
    with pytest.raises(tailrace.OverloadedError):
        await async_client.run("hi")
    assert len(servicer.requests) == 8


async def test_a_stream_is_not_tried_again_after_its_first_event(client, async_client, servicer, in_thread):
    servicer.script = breaking
    seen = []

    async def read():
        async for event in async_client.stream("hi"):
            seen.append(event)

    with pytest.raises(tailrace.UnavailableError):
        await in_thread(list, client.stream("hi"))
    with pytest.raises(tailrace.UnavailableError):
        await read()
    assert len(servicer.requests) == 2 and seen[1].text == "New"


async def test_a_complete_reply_is_tried_again_even_then(client, async_client, servicer, in_thread):
    servicer.scripts = [breaking, new_york, breaking, new_york]
    assert (await in_thread(client.run, "hi")).text == "New York\n“é”"
    assert (await async_client.run("hi")).text == "New York\n“é”"


async def test_a_deadline_ends_a_reply_that_hesitates(client, async_client, servicer, in_thread):
    servicer.script = hesitating
    for run in (in_thread(client.run, "hi", timeout=1), async_client.run("hi", timeout=1)):
        with pytest.raises(tailrace.DeadlineError, match=r"within timeout, 1 s") as raised:
            await run
        assert raised.value.request_id == servicer.request_ids[-1]
        async with asyncio.timeout(10):
            await servicer.cancelled.wait()
        servicer.cancelled.clear()
    assert len(servicer.requests) == 2


async def test_closing_a_stream_cancels_the_request(client, async_client, servicer, in_thread):
    servicer.script = hesitating

    def read_one():
        with client.stream("hi") as stream:
            return next(stream.texts())

    async def read_one_too():
        async with async_client.stream("hi") as stream:
            return await anext(aiter(stream.texts()))

    for first in (in_thread(read_one), read_one_too()):
        assert await first == "New"
        async with asyncio.timeout(10):
            await servicer.cancelled.wait()
        servicer.cancelled.clear()


async def test_a_cancelled_task_cancels_its_request(async_client, servicer):
    servicer.script = hesitating
    task = asyncio.create_task(async_client.run("hi"))
    await servicer.entered.wait()
    task.cancel()
    async with asyncio.timeout(10):
        await servicer.cancelled.wait()
        with pytest.raises(asyncio.CancelledError):
            await task


@pytest.mark.parametrize("scheme", ["http", "grpc"])
async def test_an_address_without_a_server_is_named(scheme, in_thread):
    url = f"{scheme}://{free_address()}"
    with Client(url) as client, pytest.raises(tailrace.ConnectionFailedError, match=f"answers at {url}"):
        await in_thread(client.run, "hi", model=MODEL, retries=1)
    async with AsyncClient(url) as client:
        with pytest.raises(tailrace.ConnectionFailedError, match=f"answers at {url}"):
            await client.models(retries=0)


@pytest.mark.parametrize("body", [b"<html></html>", b"[]", b'{"data": [1]}', b'{"data": [{"embedding": [0.5]}]}'])
async def test_another_program_at_the_address_is_noticed(in_thread, body):
    async def answer(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b" % (len(body), body))
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        with Client(f"http://127.0.0.1:{port}", model=MODEL, retries=0) as client:
            for call in (client.models, lambda: client.run("hi"), lambda: client.embed("hi", model=MODEL)):
                with pytest.raises(tailrace.ConnectionFailedError):
                    await in_thread(call)


async def test_wrong_arguments_are_refused_before_they_are_sent(client, servicer):
    for options, sentence in [
        ({"temperature": 9}, "temperature is 9: it must be a number, 0 to 5"),
        ({"max_tokens": 1.5}, "max_tokens is 1.5: it must be a whole number"),
        ({"top_p": True}, "top_p is True"),
        ({"logprobs": 21}, "logprobs is 21"),
        ({"messages": [{"role": "user", "content": "hi"}]}, "a prompt and messages"),
        ({"raw": True, "system": "Be brief."}, "no chat template, which system needs"),
    ]:
        with pytest.raises(tailrace.InvalidRequestError, match=sentence):
            client.run("hi", **options)
    with pytest.raises(TypeError, match="unknown argument temprature"):
        client.run("hi", temprature=1)
    with pytest.raises(tailrace.InvalidRequestError, match="no prompt and no messages"):
        client.run()
    for options in ({"messages": ["hi"]}, {"prompt": "\ud800"}, {"prompt": "hi", "json_schema": {"a": object()}}):
        with pytest.raises(tailrace.InvalidRequestError, match=r"wrong type or range|is a tailrace\.Message"):
            client.run(**options)
    assert not servicer.requests


async def test_a_closed_client_says_so(client, async_client):
    client.close()
    await async_client.close()
    with pytest.raises(RuntimeError, match="this client is closed"):
        client.run("hi")
    with pytest.raises(RuntimeError, match="this client is closed"):
        await async_client.stream("hi").reply()


async def test_closing_a_client_ends_the_replies_of_others(client, async_client, servicer):
    servicer.script = hesitating
    has_begun, loop = asyncio.Event(), asyncio.get_running_loop()

    def read():
        for _ in client.stream("hi").texts():
            loop.call_soon_threadsafe(has_begun.set)

    async def read_too():
        async for _ in async_client.stream("hi").texts():
            has_begun.set()

    async def close():
        client.close()

    for reading, closing in ((asyncio.to_thread(read), close), (read_too(), async_client.close)):
        has_begun.clear()
        servicer.cancelled.clear()
        # Keep-alive comments every 10 s would end a read, too.
        async with asyncio.timeout(8):
            task = asyncio.create_task(reading)
            await has_begun.wait()
            await closing()
            with pytest.raises(tailrace.ConnectionFailedError):
                await task
            await servicer.cancelled.wait()


@pytest.mark.parametrize("limit", ["timeout", "total_timeout"])
async def test_the_limit_of_a_call_applies_to_the_list_of_models_too(limit, in_thread):
    async def silent(reader, writer):
        await reader.read()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    async with server:
        address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        with Client(address) as client:
            for call in (client.run, client.embed, lambda *texts, **limits: client.stream(*texts, **limits).reply()):
                with pytest.raises(tailrace.DeadlineError):
                    await in_thread(call, "hi", **{limit: 0.1})
        async with AsyncClient(address) as client, asyncio.timeout(20):
            for call in (client.run, client.embed, lambda *texts, **limits: client.stream(*texts, **limits).reply()):
                with pytest.raises(tailrace.DeadlineError):
                    await call("hi", **{limit: 0.1})


async def test_an_answer_that_arrives_too_slowly_is_late(in_thread):
    async def trickle(reader, writer):
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 99999\r\n\r\n")
        with contextlib.suppress(OSError):
            while not writer.is_closing():
                writer.write(b" ")
                await writer.drain()
                await asyncio.sleep(0.02)

    server = await asyncio.start_server(trickle, "127.0.0.1", 0)
    async with server:
        address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        with Client(address) as client, pytest.raises(tailrace.DeadlineError):
            await in_thread(client.models, timeout=0.2)
        async with AsyncClient(address) as client:
            with pytest.raises(tailrace.DeadlineError):
                await client.models(timeout=0.2)


async def test_a_cancelled_task_stays_cancelled_if_the_client_is_closed_too(async_client, servicer):
    servicer.script = hesitating
    task = asyncio.create_task(async_client.run("hi"))
    async with asyncio.timeout(20):
        await servicer.entered.wait()
        task.cancel()
        closing = asyncio.create_task(async_client.close())
        with pytest.raises(asyncio.CancelledError):
            await task
        await closing
