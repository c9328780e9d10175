"""The `send` of an event stream with comments, without a server."""

import asyncio

from http_bridge.http_server.stream_comments import stream_comments

EVENT = {"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True}


class Client:
    """A client that reads nothing until `reads` is set."""

    def __init__(self) -> None:
        self.reads = asyncio.Event()
        self.received: list[bytes] = []

    async def send(self, message) -> None:
        await self.reads.wait()
        self.received.append(message["body"])


async def test_a_client_that_does_not_read_gets_one_comment_after_its_event():
    client = Client()
    with stream_comments(client.send, 0.01) as send:
        sending = asyncio.ensure_future(send(EVENT))
        await asyncio.sleep(0.08)
        client.reads.set()
        await sending
        await asyncio.sleep(0)
        assert [body[:4] for body in client.received] == [b"data", b": ke"]


async def test_a_comment_that_waits_for_the_client_is_dropped_at_the_end():
    client = Client()
    with stream_comments(client.send, 0.01):
        await asyncio.sleep(0.03)
    client.reads.set()
    await asyncio.sleep(0.03)
    assert client.received == []


async def test_an_error_of_a_closed_connection_is_not_an_error_of_the_stream(caplog):
    async def send(message) -> None:
        raise OSError("closed")

    with stream_comments(send, 0.01):
        await asyncio.sleep(0.03)
    assert caplog.records == []


async def test_no_comments_means_the_same_send():
    client = Client()
    with stream_comments(client.send, 0) as send:
        assert send == client.send
