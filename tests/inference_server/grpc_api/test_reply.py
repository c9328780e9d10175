"""A reader that is slower than the model gets joined deltas with the same content."""

import asyncio

import pytest

from inference_server.engine.admission import AdmissionTicket
from inference_server.engine.reply import MAX_JOINED_DELTAS, Reply
from inference_server.errors import GenerationFailed
from inference_server.generation import (
    Candidate,
    Completed,
    Delta,
    Event,
    Failed,
    FinishReason,
    Started,
    Timings,
    TokenLogprob,
    Usage,
)

TICKET = AdmissionTicket(None, "", 1)
STARTED = Started(prompt_tokens=1, seed=1)
COMPLETED = Completed(FinishReason.STOP, None, Usage(1, 3), Timings(0, 0, 0))


def reply_with(*events: Event) -> Reply:
    reply = Reply(lambda reply: None, TICKET)
    for event in events:
        reply.events.put_nowait(event)
    return reply


async def read(reply: Reply) -> list[Event]:
    async with asyncio.timeout(1):
        return [event async for event in reply]


async def test_deltas_that_wait_together_become_one_in_order():
    events = await read(reply_with(STARTED, Delta("a", 1), Delta("", 2), Delta("bc", 1), COMPLETED))
    assert events == [STARTED, Delta("abc", 4), COMPLETED]


async def test_log_probabilities_of_joined_deltas_stay_in_order():
    first, second, third = (TokenLogprob(Candidate(number, -1.0), ()) for number in range(3))
    events = await read(reply_with(Delta("a", 1, (first,)), Delta("b", 2, (second, third)), COMPLETED))
    assert events[0] == Delta("ab", 3, (first, second, third))


async def test_a_single_delta_is_sent_immediately_and_unchanged():
    alone = Delta("a", 1)
    reply = reply_with(alone)
    async with asyncio.timeout(1):
        assert await anext(reply) is alone


async def test_a_limited_number_of_deltas_is_joined():
    events = await read(reply_with(*(Delta(".", 1) for _ in range(2 * MAX_JOINED_DELTAS + 1)), COMPLETED))
    assert [event.num_tokens for event in events[:-1]] == [MAX_JOINED_DELTAS, MAX_JOINED_DELTAS, 1]


async def test_a_failure_after_deltas_follows_their_text():
    reply = reply_with(Delta("a", 1), Delta("b", 1), Failed(GenerationFailed("no")))
    async with asyncio.timeout(1):
        assert await anext(reply) == Delta("ab", 2)
        with pytest.raises(GenerationFailed):
            await anext(reply)
        with pytest.raises(StopAsyncIteration):
            await anext(reply)


async def test_leaving_before_reading_the_end_cancels_the_request():
    released: list[Reply] = []
    async with Reply(released.append, TICKET) as reply:
        for event in (Delta("a", 1), Delta("b", 1), COMPLETED):
            reply.events.put_nowait(event)
        await anext(reply)
    assert released == [reply]
