"""`Run`, `ListModels`, `CountTokens`, health and reflection over a real connection, on a tiny Llama."""

import asyncio
import time

import grpc
import pytest
from google.protobuf import descriptor_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from inference_server.grpc_api.server import SERVICE
from tailrace.v1 import inference_pb2 as pb
from tailrace.v1.inference_pb2_grpc import InferenceServiceStub
from tests.support.engines import until
from tests.support.servers import MODEL, chat, details, running_server, write_catalog


@pytest.fixture
def catalog(tiny_model, tmp_path):
    return write_catalog(tmp_path / "catalog.toml", tiny_model("llama-2"))


@pytest.fixture
async def running(catalog):
    # Small chunks, so that a prompt of 2048 tokens is computed long enough to act meanwhile.
    settings = {"max_running_seqs": 2, "max_waiting_seqs": 2, "prefill_chunk_tokens": 16, "prefill_idle_tokens": 16}
    async with running_server(catalog, **settings) as running:
        yield running


async def refused(call) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        async for _ in call:
            pass
    return error.value


def endless(text: str = "hello") -> pb.RunRequest:
    """Return a request with a reply that takes seconds, because the tiny model's greedy replies do not end."""
    return chat(text, temperature=0.0)


def words(count: int) -> str:
    """Return a text of `count` tokens, to which the tokenizer adds its <s>."""
    return " ".join(["the"] * count)


async def test_a_reply_is_started_deltas_and_completed(running):
    events = [event async for event in running.stub.Run(chat(max_tokens=5, seed=7))]
    kinds = [event.WhichOneof("event") for event in events]
    assert kinds[0] == "started" and kinds[-1] == "completed" and set(kinds[1:-1]) <= {"delta"}
    assert events[0].started.seed == 7
    assert events[0].started.prompt_tokens == events[-1].completed.usage.prompt_tokens > 0


async def test_delayed_deltas_arrive_joined_with_the_same_text(running):
    request = chat(max_tokens=60, temperature=0.0)
    expected = "".join([event.delta.text async for event in running.stub.Run(request)])
    call = running.stub.Run(request)
    assert (await call.read()).HasField("started")
    deadline = time.monotonic() + 10
    while running.engine.scheduler.running and time.monotonic() < deadline:
        time.sleep(0.01)  # the model's thread continues, but this event loop, which the server shares, does not
    deltas = []
    while (event := await call.read()).HasField("delta"):
        deltas.append(event.delta)
    assert "".join(delta.text for delta in deltas) == expected
    assert len(deltas) < sum(delta.tokens for delta in deltas) == event.completed.usage.completion_tokens == 60


async def test_an_unread_reply_is_aborted(catalog):
    async with running_server(catalog, write_timeout_seconds=0.2) as running:
        # Without its bandwidth probes, gRPC buffers 64 KiB for a client that does not read.
        async with grpc.aio.insecure_channel(running.address, options=(("grpc.http2.bdp_probe", 0),)) as channel:
            request = endless()
            request.logprobs.top = 20
            call = InferenceServiceStub(channel).Run(request)
            await call.initial_metadata()
            await until(lambda: running.engine.num_in_flight == 0)
            error = await refused(call)
    assert details(error)["ErrorInfo"].reason == "CLIENT_TOO_SLOW"


async def test_initial_metadata_is_sent_while_the_request_waits(running):
    calls = [running.stub.Run(endless()) for _ in range(3)]
    for call in calls:
        async with asyncio.timeout(10):
            await call.initial_metadata()
    await until(lambda: len(running.engine.scheduler.running) == 2 and len(running.engine.scheduler.waiting) == 1)
    for call in calls:
        call.cancel()


async def test_the_callers_request_id_is_returned(running):
    call = running.stub.Run(chat(max_tokens=1), metadata=(("x-request-id", "order-66"),))
    assert dict(await call.initial_metadata())["x-request-id"] == "order-66"
    assert (await call.read()).started.request_id == "order-66"


async def test_a_seed_is_drawn_and_reproduces_the_reply(running):
    async def run(**sampling):
        events = [event async for event in running.stub.Run(chat(max_tokens=20, temperature=2.0, **sampling))]
        return events[0].started.seed, "".join(event.delta.text for event in events)

    seed, text = await run()
    other_seed, _ = await run()
    assert seed != other_seed
    assert await run(seed=seed) == (seed, text)


async def test_an_unknown_model_is_not_found(running):
    error = await refused(running.stub.Run(pb.RunRequest(model="@cf/no/such", text="hi")))
    assert error.code() is grpc.StatusCode.NOT_FOUND
    assert details(error)["ErrorInfo"].reason == "UNKNOWN_MODEL"


async def test_the_error_for_a_model_of_workers_ai_has_the_step_that_serves_it(running):
    error = await refused(running.stub.Run(pb.RunRequest(model="@cf/qwen/qwq-32b", text="hi")))
    step = "`tailrace serve @cf/qwen/qwq-32b` serves it; the models are "
    assert error.details() == f"there is no model '@cf/qwen/qwq-32b' here; {step}{MODEL}"


async def test_every_wrong_field_is_named(running):
    error = await refused(running.stub.Run(chat(temperature=9.0, repetition_penalty=0.0, top_k=0)))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    fields = [violation.field for violation in details(error)["BadRequest"].field_violations]
    assert fields == ["sampling.temperature", "sampling.top_k", "sampling.repetition_penalty"]


async def test_a_prompt_that_is_too_long_is_refused_with_both_numbers(running):
    running.engine.runner.prefill = None  # calling it would fail with another status
    error = await refused(running.stub.Run(pb.RunRequest(model=MODEL, text=words(2048))))
    info = details(error)["ErrorInfo"]
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert (info.reason, dict(info.metadata)) == (
        "PROMPT_TOO_LONG",
        {"prompt_tokens": "2049", "context_length": "2048"},
    )


async def test_a_full_queue_refuses_with_a_retry_time(running):
    calls = [running.stub.Run(endless()) for _ in range(4)]
    await until(lambda: running.engine.num_in_flight == 4)
    error = await refused(running.stub.Run(endless()))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert details(error)["ErrorInfo"].reason == "CAPACITY_EXCEEDED"
    assert details(error)["RetryInfo"].retry_delay.ToMilliseconds() >= 1000
    for call in calls:
        call.cancel()


@pytest.mark.parametrize("leaving", ["cancel", "deadline", "abandon"])
async def test_a_caller_that_cancels_frees_its_slot(running, leaving):
    call = running.stub.Run(endless(), timeout=0.8 if leaving == "deadline" else None)
    assert (await call.read()).HasField("started")
    (seq,) = running.engine.scheduler.running
    if leaving == "cancel":
        call.cancel()
    elif leaving == "abandon":
        del call
    else:
        assert await call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await until(lambda: running.engine.num_in_flight == 0)
    assert not seq.is_at_length


async def test_a_caller_that_cancels_in_the_queue_frees_its_place(running):
    calls = [running.stub.Run(endless()) for _ in range(3)]
    await until(lambda: len(running.engine.scheduler.waiting) == 1)
    seqs = list(running.engine.scheduler.running)
    calls[2].cancel()
    await until(lambda: running.engine.num_in_flight == 2)
    assert not any(seq.is_at_length for seq in seqs)
    for call in calls:
        call.cancel()


async def test_a_caller_that_cancels_during_prefill_frees_its_slot(running):
    call = running.stub.Run(pb.RunRequest(model=MODEL, text=words(2047)))
    await until(lambda: any(seq.num_computed for seq in running.engine.scheduler.running))
    (seq,) = running.engine.scheduler.running
    assert seq.is_prefilling
    call.cancel()
    await until(lambda: running.engine.num_in_flight == 0)
    assert not seq.is_at_length


async def test_a_stopping_server_is_unavailable(running):
    running.server.servicer.is_stopping = True
    error = await refused(running.stub.Run(chat()))
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert details(error)["ErrorInfo"].reason == "SERVER_STOPPING"


async def test_a_stop_string_is_reported(running):
    events = [event async for event in running.stub.Run(chat(max_tokens=200, temperature=0.0))]
    text = "".join(event.delta.text for event in events)
    events = [event async for event in running.stub.Run(chat(max_tokens=200, temperature=0.0, stop=[text[8:12]]))]
    assert events[-1].completed.finish_reason == pb.FINISH_REASON_STOP
    assert events[-1].completed.stop_string == text[8:12]


async def test_logprobs_are_reported_on_request(running):
    request = chat(max_tokens=6, temperature=0.0)
    request.logprobs.top = 3
    events = [event async for event in running.stub.Run(request)]
    reported = [logprob for event in events for logprob in event.delta.logprobs]
    assert len(reported) == 6
    for logprob in reported:
        assert len(logprob.top) == 3
        assert logprob.top[0] == logprob.token  # greedy sampling takes the most likely token
        assert logprob.token.logprob <= 0


async def test_a_time_limit_completes_with_the_text_so_far(running):
    request = endless()
    request.time_limit.FromMilliseconds(600)
    events = [event async for event in running.stub.Run(request)]
    assert events[-1].completed.finish_reason == pb.FINISH_REASON_TIME_LIMIT
    assert any(event.delta.text for event in events)


async def test_count_tokens_agrees_with_run(running):
    request = chat("where is the program", max_tokens=1)
    counted = await running.stub.CountTokens(pb.CountTokensRequest(model=MODEL, chat=request.chat))
    events = [event async for event in running.stub.Run(request)]
    assert counted.prompt_tokens == events[0].started.prompt_tokens
    assert (counted.context_length, counted.max_completion_tokens) == (2048, 1800)


async def test_count_tokens_counts_a_prompt_that_is_too_long(running):
    counted = await running.stub.CountTokens(pb.CountTokensRequest(model=MODEL, text=words(3000)))
    assert (counted.prompt_tokens, counted.max_completion_tokens) == (3001, 0)


async def test_models_are_listed_with_their_limits(running):
    (model,) = (await running.stub.ListModels(pb.ListModelsRequest())).models
    assert (model.name, model.context_length, model.sequence_length, model.window) == (MODEL, 2048, 1800, 3848)
    assert (model.precision, model.reply_shape) == ("float32", "response")


async def test_malformed_input_fails_alone(running):
    bad = [
        pb.RunRequest(),
        pb.RunRequest(model=MODEL),
        pb.RunRequest(model=MODEL, text=""),
        pb.RunRequest(model=MODEL, chat=pb.Chat()),
        pb.RunRequest(model=MODEL, chat=pb.Chat(turns=[pb.ChatTurn(role="", content="x")])),
        pb.RunRequest(model=MODEL, text="x", sampling=pb.Sampling(temperature=float("nan"))),
        pb.RunRequest(model=MODEL, text="x", sampling=pb.Sampling(stop=[""])),
        pb.RunRequest(model=MODEL, text="x", account="a" * 1000),
    ]
    for request in bad:
        assert (await refused(running.stub.Run(request))).code() is grpc.StatusCode.INVALID_ARGUMENT
    odd = ["\0", "\x7f\x1b[2J", "🏳️‍🌈" * 20, "\u202e", " ", "\n" * 50, "ⷎ\ufeff\ufffd"]
    for text in odd:
        request = pb.RunRequest(model=MODEL, text=text, sampling=pb.Sampling(max_tokens=2))
        assert [event async for event in running.stub.Run(request)][-1].HasField("completed")


async def test_an_unexpected_error_reveals_no_internals(running):
    def fail(*args):
        raise KeyError("secret path")

    running.server.servicer.models[MODEL].prompts.encode_conversation = fail
    error = await refused(running.stub.Run(chat()))
    assert error.code() is grpc.StatusCode.INTERNAL
    assert "secret" not in error.details()


async def test_a_broken_model_ends_the_server(running):
    def fail(**arguments):
        raise RuntimeError("device trouble")

    running.engine.runner.model = fail
    error = await refused(running.stub.Run(chat()))
    assert details(error)["ErrorInfo"].reason == "GENERATION_FAILED"
    async with asyncio.timeout(10):
        await running.server.broken.wait()
    assert (await refused(running.stub.Run(chat()))).code() is grpc.StatusCode.UNAVAILABLE


async def test_health_is_not_serving_before_the_warm_up(catalog):
    async with running_server(catalog, load=False) as running:
        stub = health_pb2_grpc.HealthStub(running.channel)
        for name in ("", SERVICE):
            answer = await stub.Check(health_pb2.HealthCheckRequest(service=name))
            assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING
        error = await refused(running.stub.Run(chat()))
        assert details(error)["ErrorInfo"].reason == "MODEL_NOT_READY"
        await running.server.load()
        for name in ("", SERVICE):
            answer = await stub.Check(health_pb2.HealthCheckRequest(service=name))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_reflection_is_sufficient_for_calls(running):
    """List the services, fetch the file that contains one, and find the method, as grpcurl does."""
    stub = reflection_pb2_grpc.ServerReflectionStub(running.channel)

    async def ask(**question):
        answers = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(**question)]))
        return [answer async for answer in answers][0]

    services = (await ask(list_services="")).list_services_response.service
    assert {SERVICE, "grpc.health.v1.Health"} <= {service.name for service in services}
    files = (await ask(file_containing_symbol=SERVICE)).file_descriptor_response.file_descriptor_proto
    described = [descriptor_pb2.FileDescriptorProto.FromString(data) for data in files]
    methods = {method.name: method for file in described for service in file.service for method in service.method}
    assert methods["Run"].server_streaming


@pytest.mark.parametrize("method", ["Run", "CountTokens"])
async def test_bytes_that_are_not_a_message_are_an_invalid_field(running, method):
    path = f"/{SERVICE}/{method}"
    call = running.channel.unary_stream(path) if method == "Run" else running.channel.unary_unary(path)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        reply = call(b"\x0a\xff")
        await (reply.read() if method == "Run" else reply)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert details(caught.value)["ErrorInfo"].reason == "INVALID_FIELD"
    assert "DecodeError" not in caught.value.details()
