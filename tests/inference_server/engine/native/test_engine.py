"""The engine on a tiny Llama: streaming, limits, cancelling, isolated failures."""

import asyncio

import pytest
import torch

from inference_server.errors import CapacityExceeded, GenerationFailed, PromptTooLong, ServerStopping
from inference_server.generation import Completed, Delta, FinishReason, SamplingParams, Started
from inference_server.text.prompt_encoder import Turn
from tests.support.engines import Recorder, collect, entry, hosting, request, until

ENDLESS = {"max_tokens": 1800}


def prompt(length: int, seed: int = 0) -> list[int]:
    return torch.randint(3, 403, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


async def read_until_delta(reply) -> None:
    async for event in reply:
        if isinstance(event, Delta):
            return


async def test_events_are_started_deltas_completed(llama):
    kinds = []
    async with llama.submit(request(prompt(10))) as reply:
        async for event in reply:
            kinds.append(type(event))
    assert kinds[0] is Started
    assert kinds[-1] is Completed
    assert set(kinds[1:-1]) == {Delta}


async def test_deltas_arrive_while_the_reply_is_still_generated(llama):
    async with llama.submit(request(prompt(10), **ENDLESS)) as reply:
        await read_until_delta(reply)
        assert llama.engine.scheduler.running


async def test_joined_deltas_are_the_text_of_all_tokens(llama):
    recorder = Recorder(llama)
    reply = await collect(llama, request(prompt(10), max_tokens=200))
    text = llama.prompts.decoder.decode(recorder.completion("test", 10))
    assert reply.text == text.rstrip("\N{REPLACEMENT CHARACTER}")


async def test_raw_text_is_continued_with_its_space(llama):
    ids = llama.prompts.encode_text("where is the")
    recorder = Recorder(llama)
    reply = await collect(llama, request(ids, continues_prompt=True))
    whole = llama.prompts.decoder.decode(ids + recorder.completion("test", len(ids)))
    assert ("where is the" + reply.text) == whole.rstrip("\N{REPLACEMENT CHARACTER}")


async def test_length_ends_a_reply(llama):
    reply = await collect(llama, request(prompt(10), max_tokens=7))
    assert reply.completed.finish_reason is FinishReason.LENGTH
    assert reply.completed.usage.completion_tokens == 7


async def test_an_end_token_ends_a_reply_and_has_no_text(llama):
    recorder = Recorder(llama)
    sampling = SamplingParams(seed=3, temperature=5.0)
    reply = await collect(llama, request(prompt(10), sampling=sampling, max_tokens=1800))
    assert reply.completed.finish_reason is FinishReason.STOP
    assert recorder.completion("test", 10)[-1] == 2
    assert "</s>" not in reply.text


async def test_token_counts_of_deltas_sum_to_the_usage(llama):
    reply = await collect(
        llama, request(prompt(10), max_tokens=30, sampling=SamplingParams(seed=1, logprobs=2, ignore_eos=True))
    )
    assert sum(delta.num_tokens for delta in reply.deltas) == 30
    assert sum(len(delta.logprobs) for delta in reply.deltas) == 30


async def test_a_stop_string_ends_a_reply_and_is_never_sent(llama):
    whole = (await collect(llama, request(prompt(10), max_tokens=60))).text
    stop = whole[10:14]
    reply = await collect(llama, request(prompt(10), max_tokens=60, stop=(stop,)))
    assert reply.completed.stop_string == stop
    assert reply.text == whole[: whole.index(stop)]


@pytest.mark.parametrize(
    ("context_length", "sequence_length", "own_window", "expected_max"),
    [(3072, 2500, 8192, 2500), (2048, 1800, 4096, 1800), (3072, 2500, 4096, 1024)],
)
async def test_a_full_prompt_leaves_the_rest_of_the_window(
    tiny_model, context_length, sequence_length, own_window, expected_max
):
    folder = tiny_model("llama-3" if own_window == 8192 else "llama-2")
    limits = {"context_length": context_length, "sequence_length": sequence_length}
    async with hosting(entry(folder, **limits), max_running_seqs=1) as models:
        model = models["tiny"]
        model.check_length(context_length)
        with pytest.raises(PromptTooLong):
            model.check_length(context_length + 1)
        wanted = model.max_tokens(context_length, 10**9)
        reply = await collect(model, request(prompt(context_length), max_tokens=wanted))
        assert reply.completed.usage.completion_tokens == expected_max
        assert reply.completed.finish_reason is FinishReason.LENGTH


async def test_a_cancelled_sequence_leaves_before_the_next_step(llama):
    async with llama.submit(request(prompt(10), **ENDLESS)) as reply:
        await read_until_delta(reply)
        (seq,) = llama.engine.scheduler.running
    await until(lambda: llama.engine.scheduler.is_idle)
    assert not seq.is_at_length


async def test_a_request_cancelled_while_waiting_never_runs(llama):
    recorder = Recorder(llama)
    async with llama.submit(request(prompt(5), **ENDLESS)) as running:
        await read_until_delta(running)
        others = [llama.submit(request(prompt(5), **ENDLESS)) for _ in range(3)]
        for other in others:
            await other.__aenter__()
        async with llama.submit(request(prompt(5), request_id="waiting")):
            await until(lambda: len(llama.engine.scheduler.waiting) == 1)
        await until(lambda: not llama.engine.scheduler.waiting)
        for other in others:
            await other.__aexit__(None, None, None)
    await until(lambda: llama.engine.num_in_flight == 0)
    assert recorder.completion("waiting", 5) == []


async def test_a_request_cancelled_during_prefill_leaves(llama):
    async with llama.submit(request(prompt(2000), **ENDLESS)):
        await until(lambda: any(seq.num_computed for seq in llama.engine.scheduler.running))
        (seq,) = llama.engine.scheduler.running
    await until(lambda: llama.engine.scheduler.is_idle)
    assert not seq.is_at_length


async def test_a_waiting_request_is_admitted_when_another_finishes(llama):
    lengths = [40, 5, 5, 5, 5, 5]
    replies = await asyncio.gather(*(collect(llama, request(prompt(5, n), max_tokens=n)) for n in lengths))
    assert [reply.completed.usage.completion_tokens for reply in replies] == lengths
    assert max(reply.completed.timings.queue for reply in replies) > 0


async def test_a_full_wait_queue_refuses_with_a_retry_time(llama):
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(collect(llama, request(prompt(5), max_tokens=50))) for _ in range(7)]
        await until(lambda: llama.engine.num_in_flight == 7)
        with pytest.raises(CapacityExceeded) as refused:
            llama.submit(request(prompt(5)))
        assert 1 <= refused.value.retry_after_seconds <= 60
    assert all(task.result().completed for task in running)


async def test_waiting_prompts_have_a_limit_in_tokens(tiny_model):
    settings = {"max_running_seqs": 1, "max_waiting_tokens": 40}
    async with hosting(entry(tiny_model("llama-2")), **settings) as models, asyncio.TaskGroup() as tasks:
        llama = models["tiny"]
        running = tasks.create_task(collect(llama, request(prompt(5), **ENDLESS)))
        await until(lambda: llama.engine.num_running == 1 and not llama.engine.num_waiting)
        waiting = tasks.create_task(collect(llama, request(prompt(30))))
        await until(lambda: llama.engine.num_waiting == 1)
        with pytest.raises(CapacityExceeded, match="prompt tokens"):
            llama.submit(request(prompt(11)))
        for task in (running, waiting):
            task.cancel()


async def test_reject_if_busy_refuses_instead_of_waiting(llama):
    async with asyncio.TaskGroup() as tasks:
        for _ in range(4):
            tasks.create_task(collect(llama, request(prompt(5), max_tokens=50)))
        await until(lambda: llama.engine.num_in_flight == 4)
        with pytest.raises(CapacityExceeded):
            llama.submit(request(prompt(5), reject_if_busy=True))


async def test_a_time_limit_returns_the_text_so_far(llama):
    reply = await collect(llama, request(prompt(10), time_limit_seconds=0.6, **ENDLESS))
    assert reply.completed.finish_reason is FinishReason.TIME_LIMIT
    assert 0 < reply.completed.usage.completion_tokens < 1800
    assert reply.text


async def test_a_time_limit_in_the_wait_queue_completes_without_text(llama):
    async with asyncio.TaskGroup() as tasks:
        for _ in range(4):
            tasks.create_task(collect(llama, request(prompt(5), time_limit_seconds=1.0, **ENDLESS)))
        await until(lambda: len(llama.engine.scheduler.running) == 4)
        waiting = await collect(llama, request(prompt(5), time_limit_seconds=0.1))
    assert waiting.started is None
    assert waiting.completed.finish_reason is FinishReason.TIME_LIMIT
    assert waiting.completed.usage.completion_tokens == 0


async def test_a_long_prompt_does_not_stall_running_streams(llama):
    """At most one chunk of the long prompt runs between two tokens of a running stream."""
    chunks = []
    prefill = llama.engine.runner.prefill
    llama.engine.runner.prefill = lambda pieces: chunks.append(sum(len(p.token_ids) for p in pieces)) or prefill(pieces)
    async with llama.submit(request(prompt(5), **ENDLESS)) as running:
        await read_until_delta(running)
        recorder = Recorder(llama)
        seen = []
        decode = llama.engine.runner.decode
        llama.engine.runner.decode = lambda tokens: seen.append(len(chunks)) or decode(tokens)
        await collect(llama, request(prompt(1000), max_tokens=1, request_id="long"))
        assert len(recorder.completion("long", 1000)) == 1
    assert max(chunks) == 64
    assert max(later - earlier for earlier, later in zip(seen, seen[1:], strict=False)) == 1


async def test_a_failing_prompt_fails_alone(llama):
    prefill = llama.engine.runner.prefill

    def break_on_33_tokens(pieces):
        if any(len(piece.token_ids) == 33 for piece in pieces):
            raise RuntimeError("device trouble")
        return prefill(pieces)

    async with llama.submit(request(prompt(5), max_tokens=60)) as running:
        await read_until_delta(running)
        llama.engine.runner.prefill = break_on_33_tokens
        for _ in range(5):
            with pytest.raises(GenerationFailed):
                await collect(llama, request(prompt(33)))
        events = [event async for event in running]
    assert isinstance(events[-1], Completed)


async def test_logits_that_are_not_finite_fail_their_own_sequence_only(llama):
    decode = llama.engine.runner.decode

    def poison(tokens):
        logits = decode(tokens)
        logits[[index for index, token in enumerate(tokens) if token.block_ids != first_blocks]] = float("nan")
        return logits

    async with llama.submit(request(prompt(5), max_tokens=40)) as healthy:
        await read_until_delta(healthy)
        first_blocks = llama.engine.scheduler.running[0].block_ids  # the list grows in place
        llama.engine.runner.decode = poison
        with pytest.raises(GenerationFailed):
            await collect(llama, request(prompt(6)))
        assert isinstance([event async for event in healthy][-1], Completed)


async def test_an_engine_whose_every_pass_fails_is_broken(tiny_model):
    broken = asyncio.Event()
    async with hosting(entry(tiny_model("llama-2"))) as models:
        engine = models["tiny"].engine
        engine._on_broken = broken.set

        def fail(**arguments):
            raise RuntimeError("device trouble")

        engine.runner.model = fail
        with pytest.raises(GenerationFailed):
            await collect(models["tiny"], request(prompt(5)))
        async with asyncio.timeout(30):
            await broken.wait()
        with pytest.raises(ServerStopping):
            models["tiny"].submit(request(prompt(5)))


async def test_draining_refuses_new_requests_and_finishes_running_ones(llama):
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(collect(llama, request(prompt(5), max_tokens=60)))
        await until(lambda: llama.engine.num_in_flight == 1)
        drained = tasks.create_task(llama.engine.drain())
        await asyncio.sleep(0)
        with pytest.raises(ServerStopping):
            llama.submit(request(prompt(5)))
        async with asyncio.timeout(10):
            await drained
    assert running.result().completed.usage.completion_tokens == 60


async def test_stopping_fails_running_requests(tiny_model):
    async with hosting(entry(tiny_model("llama-2"))) as models:
        async with models["tiny"].submit(request(prompt(5), **ENDLESS)) as reply:
            await read_until_delta(reply)
            await models["tiny"].engine.stop()
            with pytest.raises(ServerStopping):
                async for _ in reply:
                    pass


async def test_seeded_replies_are_the_same_alone_and_in_a_batch(llama):
    def seeded(seed: int):
        return request(prompt(12), sampling=SamplingParams(seed=seed, temperature=1.0, ignore_eos=True), max_tokens=40)

    for seed in (1, 2, 2**64 - 1):
        alone = await collect(llama, seeded(seed))
        crowd = [
            request(prompt(n, n), sampling=SamplingParams(seed=n, ignore_eos=True), max_tokens=40) for n in (3, 50, 90)
        ]
        together, *_ = await asyncio.gather(*(collect(llama, one) for one in (seeded(seed), *crowd)))
        assert together.text == alone.text


async def test_greedy_tokens_do_not_depend_on_when_a_sequence_joins(llama):
    recorder = Recorder(llama)
    await collect(llama, request(prompt(100), request_id="alone", max_tokens=30))
    async with llama.submit(request(prompt(5), **ENDLESS)) as running:
        for index in range(3):
            await read_until_delta(running)
            await collect(llama, request(prompt(100), request_id=f"joined {index}", max_tokens=30))
            assert recorder.completion(f"joined {index}", 100) == recorder.completion("alone", 100)


async def test_entries_with_equal_weights_share_one_engine(tiny_model):
    folder = tiny_model("llama-2")
    entries = [
        entry(folder, name="a"),
        entry(folder, name="b", context_length=100),
        entry(folder, name="c", precision="bfloat16"),
    ]
    async with hosting(*entries) as models:
        assert models["a"].engine is models["b"].engine
        assert models["a"].engine is not models["c"].engine
        assert models["b"].context_length == 100


async def test_a_llama_2_without_a_template_gets_the_default_one(llama):
    ids = llama.prompts.encode_chat([Turn("user", "where is the program")])
    assert llama.prompts._plain.decode(ids, skip_special_tokens=False) == "<s> [INST] where is the program [/INST]"
    assert ids.count(1) == 1


async def test_a_kv_cache_setting_too_small_for_one_sequence_stops_the_start(tiny_model):
    from tailrace_shared.config_errors import ConfigurationError

    with pytest.raises(ConfigurationError, match="TAILRACE_KV_CACHE_TOKENS=100"):
        async with hosting(entry(tiny_model("llama-2")), kv_cache_tokens=100):
            pass


async def test_preempted_sequences_have_the_same_replies(tiny_model):
    prompts = [prompt(40 + n) for n in range(6)]
    limits = {"context_length": 200, "sequence_length": 200}
    replies = {}
    for tokens in (None, 512):  # six sequences of up to 165 tokens need twice as much
        async with hosting(entry(tiny_model("llama-2"), **limits), kv_cache_tokens=tokens) as models:
            requests = [request(ids, max_tokens=120) for ids in prompts]
            replies[tokens] = await asyncio.gather(*(collect(models["tiny"], one) for one in requests))
            num_preemptions = models["tiny"].engine.scheduler.num_preemptions
    assert num_preemptions > 0
    assert [reply.text for reply in replies[512]] == [reply.text for reply in replies[None]]
    assert all(reply.completed.usage.completion_tokens == 120 for reply in replies[512])


async def test_usage_reports_cached_prompt_tokens(llama):
    first = await collect(llama, request(prompt(100)))
    again = await collect(llama, request(prompt(100)))
    assert first.completed.usage.cached_tokens == 0
    assert again.completed.usage.cached_tokens == 96
    assert again.text == first.text


async def test_the_next_turn_reuses_the_reply_as_well(llama):
    recorder = Recorder(llama)
    first = await collect(llama, request(prompt(50), request_id="first", max_tokens=60))
    history = prompt(50) + recorder.completion("first", 50)
    second = await collect(llama, request([*history, 5, 6, 7]))
    assert first.completed.usage.completion_tokens == 60
    assert second.completed.usage.cached_tokens == 96


async def test_the_prefix_cache_can_be_turned_off(tiny_model):
    async with hosting(entry(tiny_model("llama-2")), prefix_cache="off") as models:
        await collect(models["tiny"], request(prompt(100)))
        again = await collect(models["tiny"], request(prompt(100)))
    assert again.completed.usage.cached_tokens == 0
