"""A server with engine = "vllm" over gRPC: the contract's sampling, and the documented differences."""

import json
import signal
import time

import grpc
import psutil
import pytest

from tailrace.v1 import inference_pb2 as pb
from tailrace.v1 import inference_pb2_grpc
from tests.clients.conftest import catalog_text
from tests.e2e.stack import OTHER_SERVER, Stack

pytestmark = pytest.mark.vllm

MODEL = "@cf/huggingfacetb/smollm2-135m-instruct"
SCHEMA = {
    "type": "object",
    "properties": {"answer": {"enum": ["yes", "no"]}},
    "required": ["answer"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def stub(stack):
    with grpc.insecure_channel(stack.grpc_address) as channel:
        yield inference_pb2_grpc.InferenceServiceStub(channel)


def asked(text="What is the capital of Japan?", **sampling):
    chat = pb.Chat(turns=[pb.ChatTurn(role="user", content=text)])
    return pb.RunRequest(model=MODEL, chat=chat, sampling=pb.Sampling(**sampling))


def reply(stub, request):
    """Return the text, the log probabilities and the last event of a run."""
    events = list(stub.Run(request, timeout=120))
    deltas = [event.delta for event in events if event.HasField("delta")]
    assert events[0].HasField("started") and events[-1].HasField("completed")
    return "".join(d.text for d in deltas), [item for d in deltas for item in d.logprobs], events[-1].completed


def test_greedy_replies_take_the_most_likely_tokens(stub):
    text, _, end = reply(stub, asked(temperature=0))
    assert "Tokyo" in text and end.finish_reason == pb.FINISH_REASON_STOP and end.usage.completion_tokens > 5


def test_the_same_seed_repeats_a_reply_and_another_seed_does_not(stub):
    texts = [reply(stub, asked("Tell me a story", seed=s, temperature=1.0, max_tokens=24))[0] for s in (7, 7, 8)]
    assert texts[0] == texts[1] != texts[2]


def test_a_stop_string_ends_the_text_before_it_and_is_reported(stub):
    request = asked(temperature=0, stop=["Japan is"])
    text, _, end = reply(stub, request)
    assert text == "The capital of " and end.stop_string == "Japan is"
    assert end.finish_reason == pb.FINISH_REASON_STOP


def test_max_tokens_is_the_length(stub):
    _, _, end = reply(stub, asked("Tell me a story", max_tokens=5))
    assert (end.finish_reason, end.usage.completion_tokens) == (pb.FINISH_REASON_LENGTH, 5)


def test_every_token_has_log_probabilities(stub):
    request = asked(temperature=0, max_tokens=4)
    request.logprobs.top = 3
    text, logprobs, _ = reply(stub, request)
    assert b"".join(item.token.text for item in logprobs).decode() == text
    assert all(item.top[0] == item.token and len(item.top) == 3 for item in logprobs)


def test_a_penalty_changes_the_most_likely_token(stub):
    plain, penalised = (
        reply(stub, asked("Say la la la la la la", temperature=0, max_tokens=24, repetition_penalty=penalty))[0]
        for penalty in (1.0, 1.9)
    )
    assert plain != penalised


def test_a_reply_follows_its_schema(stub):
    request = asked("Is Tokyo in Japan?", temperature=0, max_tokens=60)
    request.response_format.json_schema = json.dumps(SCHEMA)
    request.logprobs.top = 5
    text, logprobs, end = reply(stub, request)
    assert json.loads(text)["answer"] in ("yes", "no") and end.finish_reason == pb.FINISH_REASON_STOP
    assert all(candidate.logprob > -1e30 for item in logprobs for candidate in item.top)


def test_a_time_limit_ends_with_the_text_so_far(stub):
    request = asked("Write a long story", max_tokens=1500)
    request.time_limit.FromMilliseconds(800)
    text, _, end = reply(stub, request)
    assert text and end.finish_reason == pb.FINISH_REASON_TIME_LIMIT


def test_a_temperature_above_2_is_refused_with_a_reason(stub):
    with pytest.raises(grpc.RpcError) as caught:
        reply(stub, asked(temperature=3))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT and "vLLM" in caught.value.details()


def test_a_caller_that_cancels_frees_its_slot(stack, stub):
    num_runs = len(stack.settled_runs())
    calls = [stub.Run(asked("Write a long story", max_tokens=1500)) for _ in range(8)]
    for call in calls:
        assert next(call).HasField("started")
        call.cancel()
    assert [run.outcome for run in stack.wait_for_runs(num_runs + 8, timeout_seconds=10)][-8:] == ["cancelled"] * 8
    request = asked(temperature=0, max_tokens=2)
    request.reject_if_busy = True
    reply(stub, request)


def test_a_second_prompt_reuses_full_blocks_of_the_first(stub):
    words = " ".join(f"word{number}" for number in range(200))
    first, second = (reply(stub, asked(words, max_tokens=1))[2].usage for _ in range(2))
    assert first.cached_tokens < second.cached_tokens <= second.prompt_tokens


@pytest.fixture
def lone_server(tmp_path):
    """Start a separate server, so that a test may end its processes."""
    stack = Stack(tmp_path, catalog_text(), server=OTHER_SERVER)
    stack.spawn("inference_server")
    try:
        while "ready after" not in stack.log("inference_server"):
            assert stack.process("inference_server").poll() is None, stack.log("inference_server")
            time.sleep(0.2)
        yield stack
    finally:
        stack.stop()


def test_the_server_exits_with_1_when_vllms_processes_end(lone_server):
    server = lone_server.process("inference_server")
    with grpc.insecure_channel(lone_server.grpc_address) as channel:
        call = inference_pb2_grpc.InferenceServiceStub(channel).Run(asked("Write a long story", max_tokens=1500))
        next(call), next(call)
        for child in psutil.Process(server.pid).children(recursive=True):
            if "EngineCore" in " ".join(child.cmdline()):
                child.send_signal(signal.SIGKILL)
        with pytest.raises(grpc.RpcError) as caught:
            list(call)
    assert caught.value.code() == grpc.StatusCode.INTERNAL
    assert server.wait(30) == 1


def test_ctrl_c_lets_running_replies_finish_and_leaves_no_process(lone_server):
    server = lone_server.process("inference_server")
    children = psutil.Process(server.pid).children(recursive=True)
    with grpc.insecure_channel(lone_server.grpc_address) as channel:
        call = inference_pb2_grpc.InferenceServiceStub(channel).Run(asked("Write a story", max_tokens=24, seed=1))
        next(call)
        for process in (server, *children):  # as a terminal does
            process.send_signal(signal.SIGINT)
        assert list(call)[-1].HasField("completed")
    assert server.wait(30) == 0
    assert not psutil.wait_procs(children, timeout=10)[1]
