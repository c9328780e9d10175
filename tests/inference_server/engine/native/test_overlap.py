"""Decoding with the host one step behind: the same replies as with the host waiting for every step."""

import asyncio
import itertools
import time
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference_server.engine.admission import CapacityLimits
from inference_server.engine.native import overlap as overlap_module
from inference_server.engine.native import step_loop as step_loop_module
from inference_server.engine.native.engine import Engine
from inference_server.engine.native.scheduling.step_plan import Policy
from inference_server.errors import ServerStopping
from inference_server.generation import Delta, FinishReason, SamplingParams
from inference_server.text.detokenizer import reply_text
from tests.inference_server.engine.native.fake_runner import VOCAB_SIZE, FakeRunner
from tests.inference_server.engine.native.stepping import END, Run, both, letters, replies, sampled, wanted
from tests.support.engines import until

SAMPLINGS = [
    {"temperature": 0.0},
    {"temperature": 0.0, "repetition_penalty": 1.3},
    {"temperature": 0.7, "ignore_eos": True},
    {"temperature": 2.0},
    {"temperature": 1.0, "top_k": 5},
    {"temperature": 1.5, "top_p": 0.8},
    {"temperature": 1.5, "top_k": 20, "top_p": 0.9, "frequency_penalty": 0.7},
    {"temperature": 1.0, "presence_penalty": 1.0},
    {"temperature": 1.0, "logprobs": 2},
]
REQUESTS = st.builds(
    lambda prompt, max_tokens, sampling, seed, stop, account: wanted(
        prompt, max_tokens=max_tokens, sampling=SamplingParams(seed=seed, **sampling), stop=stop, account=account
    ),
    st.lists(st.integers(3, 6), min_size=1, max_size=20),
    st.integers(1, 30),
    st.sampled_from(SAMPLINGS),
    st.integers(0, 2**64 - 1),
    st.sampled_from([(), ("A",), ("B", "CD"), ("@",)]),
    st.sampled_from("ab"),
)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(REQUESTS, st.integers(0, 25)), min_size=1, max_size=8),
    st.sampled_from([15, 20, 200]),
    st.sampled_from([None, 2]),
)
def test_replies_equal_those_of_waiting_steps(arriving, num_blocks, max_account_seqs):
    requests = [request for request, _ in arriving]
    arrivals = [step for _, step in arriving]
    options = {"arrivals": arrivals, "num_blocks": num_blocks, "max_account_seqs": max_account_seqs}
    overlapped, _ = replies(requests, overlap=True, **options)
    waiting, _ = replies(requests, overlap=False, **options)
    assert overlapped == waiting


def test_the_next_step_gets_its_tokens_from_the_device():
    (reply,), run = replies([wanted(max_tokens=20, sampling=sampled())], overlap=True)
    assert run.runner.num_on_device == 18  # the prompt's token and the first decoded one are known to the host
    assert reply[2].usage.completion_tokens == 20


def test_tokens_are_emitted_one_step_later():
    run = Run()
    seq = run.add(wanted(sampling=sampled()))
    run.steps(1)
    assert len(seq.token_ids) == 4  # the prompt has 3
    run.steps(1)  # launches a step
    assert len(seq.token_ids) == 4
    run.steps(1)  # launches another one, and reads the first
    assert len(seq.token_ids) == 5
    run.stepper.flush()
    assert len(seq.token_ids) == 6


def test_a_sequence_that_ends_by_length_is_not_launched_again():
    lengths = [1, 2, 3, 7, 7, 12]
    requests = [wanted([3 + n], max_tokens=n, sampling=sampled(n)) for n in lengths]
    decoded = []

    def count(run):
        run.runner.spoil = lambda tokens, logits: decoded.append(len(tokens))

    replies(requests, overlap=True, prepare=count)
    assert sum(decoded) == sum(lengths) - len(lengths)


def test_an_end_token_drops_the_sequences_row_of_the_next_step():
    requests = [wanted([3 + n], max_tokens=60, sampling=SamplingParams(seed=n, temperature=2.0)) for n in range(4)]
    overlapped, waiting, run = both(requests)
    assert overlapped == waiting
    assert sum(last.finish_reason is FinishReason.STOP for _, _, last in overlapped) >= 2
    assert run.runner.num_on_device > 50


def test_a_stop_string_drops_the_sequences_row_of_the_next_step():
    text = replies([wanted(sampling=sampled())], overlap=False)[0][0][0]
    requests = [wanted(sampling=sampled(), stop=(text[8:10],)), wanted([9], sampling=sampled(2))]
    overlapped, waiting, _ = both(requests)
    assert overlapped == waiting
    assert overlapped[0][0] == text[:8]


def test_a_cancelled_sequence_gets_no_token_of_the_step_in_flight():
    run = Run()
    kept, cancelled = run.add(wanted(sampling=sampled(1))), run.add(wanted([8], sampling=sampled(2)))
    run.steps(5)
    before = len(run.events[cancelled])
    run.scheduler.remove(cancelled)
    run.finish()
    assert len(run.events[cancelled]) == before
    assert run.reply(kept) == replies([wanted(sampling=sampled(1))], overlap=False)[0][0]


def test_blocks_of_a_cancelled_sequence_can_serve_another_one_at_once():
    run = Run(num_blocks=16)
    cancelled = run.add(wanted(range(3, 33), sampling=sampled(2)))
    kept = run.add(wanted(sampling=sampled(1)))
    run.steps(8)
    blocks = set(cancelled.block_ids)
    run.scheduler.remove(cancelled)
    joined = run.add(wanted(range(33, 63), sampling=sampled(3)))
    run.steps(2)
    assert blocks & set(joined.block_ids)
    run.finish()
    alone = [wanted(sampling=sampled(1)), wanted(range(33, 63), sampling=sampled(3))]
    assert [run.reply(kept), run.reply(joined)] == replies(alone, overlap=False)[0]


@pytest.mark.parametrize("waits", [False, True])
def test_a_time_limit_ends_a_reply_with_the_tokens_so_far(waits, monkeypatch):
    seconds = itertools.count()  # the clock advances by a second at each reading
    clock = SimpleNamespace(monotonic=lambda: next(seconds), perf_counter=time.perf_counter)
    for module in (overlap_module, step_loop_module):
        monkeypatch.setattr(module, "time", clock)
    run = Run(max_running=1 if waits else 2)
    other = run.add(wanted(max_tokens=500, sampling=sampled()))
    run.steps(3)
    limited = run.add(wanted(max_tokens=700, sampling=sampled(), time_limit_seconds=100), arrived=next(seconds))
    run.finish()
    text, token_ids, last = run.reply(limited)
    assert last.finish_reason is FinishReason.TIME_LIMIT
    assert len(text) == len(token_ids) - 3 == last.usage.completion_tokens < 100
    assert (last.usage.completion_tokens == 0) is waits
    assert run.reply(other)[2].usage.completion_tokens == 500


def test_sequences_are_preempted_when_blocks_run_out():
    requests = [wanted([3 + n], max_tokens=40, sampling=sampled(n)) for n in range(4)]
    overlapped, waiting, run = both(requests, num_blocks=20)
    assert overlapped == waiting
    assert run.scheduler.num_preemptions > 0
    assert run.runner.num_on_device > 30


def test_waiting_sequences_do_not_stop_the_overlap_while_all_slots_are_taken():
    run = Run(max_running=2)
    for n in range(5):
        run.add(wanted([3 + n], max_tokens=30, sampling=sampled(n)))
    run.steps(20)
    assert run.runner.num_on_device > 30


class Every:
    """A constraint that allows every third token, from a token that depends on the last one."""

    is_complete = False

    def __init__(self) -> None:
        self.last = 0

    def allowed(self):
        allowed = np.zeros(VOCAB_SIZE, np.uint8)
        allowed[self.last % 3 :: 3] = 1
        return allowed

    def accept(self, token_id) -> None:
        self.last = token_id


@pytest.mark.parametrize("needs_host", ["constraint", "logprobs"])
def test_a_row_that_needs_the_host_stops_the_overlap_until_it_ends(needs_host):
    def requests():
        special = {"constraint": Every()} if needs_host == "constraint" else {}
        sampling = sampled(2, logprobs=3 if needs_host == "logprobs" else None)
        return [wanted(max_tokens=40, sampling=sampled(1)), wanted([8], max_tokens=10, sampling=sampling, **special)]

    overlapped, run = replies(requests(), overlap=True, arrivals=[0, 10])
    assert overlapped == replies(requests(), overlap=False, arrivals=[0, 10])[0]
    assert 20 <= run.runner.num_on_device <= 28  # 38 without the second request


@pytest.fixture
async def engine():
    """Run an engine on its thread, over the model that needs no time."""
    limits = CapacityLimits(slots=8, waiting_seqs=100, waiting_tokens=10**6)
    policy = Policy(max_running_seqs=8, prefill_chunk_tokens=8, idle_chunk_tokens=8)
    engine = Engine(FakeRunner(), end_ids={END}, policy=policy, limits=limits)
    yield engine
    await engine.stop()


async def read(engine, request):
    async with engine.submit(request, reply_text(letters, request)) as reply:
        return "".join([event.text async for event in reply if isinstance(event, Delta)])


async def test_requests_that_arrive_at_any_time_get_the_same_texts(engine):
    requests = [wanted([3 + n % 40], max_tokens=1 + 7 * n % 60, sampling=sampled(n)) for n in range(60)]

    async def later(number, request):
        await asyncio.sleep(number % 7 * 0.003)
        return await read(engine, request)

    texts = await asyncio.gather(*(later(number, request) for number, request in enumerate(requests)))
    assert texts == [text for text, _, _ in replies(requests, overlap=False, max_running=8)[0]]
    assert engine.runner.num_on_device > 500
    assert engine.num_blocks_in_use == 0


async def test_stopping_reads_the_step_in_flight(engine):
    request = wanted(max_tokens=500, sampling=sampled())
    async with engine.submit(request, reply_text(letters, request)) as reply:
        await anext(reply)
        (seq,) = engine.scheduler.running
        await engine.stop()
        with pytest.raises(ServerStopping):
            num_tokens = 0
            async for event in reply:
                num_tokens += event.num_tokens
    assert num_tokens == seq.num_completion_tokens
    assert seq.num_computed == len(seq.token_ids) - 1


async def test_a_cancelled_request_leaves_while_its_step_is_in_flight(engine):
    request = wanted(max_tokens=700, sampling=sampled())
    async with engine.submit(request, reply_text(letters, request)) as reply:
        await anext(reply)
    await until(lambda: engine.num_in_flight == 0 and engine.num_blocks_in_use == 0)
    assert await read(engine, request) == replies([request], overlap=False)[0][0][0]
