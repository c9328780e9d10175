"""Recording and replaying over real connections: a tiny model's replies once recorded come back without the model."""

import asyncio
import json
from pathlib import Path

import grpc
import pytest

from inference_server.grpc_api.recordings.folder import RecordingsFolder
from inference_server.text.grammar_check import TOO_SLOW, GrammarCheck
from tailrace.v1 import inference_pb2 as pb
from tests.support.engines import until
from tests.support.models.tiny_encoders import write_encoder
from tests.support.servers import MODEL, chat, details, running_server, write_catalog

VECTORS = "@cf/test/vectors"
SHAPE = '{"type": "object", "properties": {"a": {"enum": ["b", "c"]}}, "required": ["a"]}'
SAMPLED = {"temperature": 1.0, "seed": 5, "max_tokens": 20}


def with_tool() -> pb.RunRequest:
    request = chat("use the tool", max_tokens=20, seed=1)
    request.chat.tools.add(name="f", parameters=SHAPE)
    request.chat.tool_choice = pb.TOOL_CHOICE_REQUIRED
    return request


RUNS = {
    "text": chat("one", **SAMPLED),
    "no seed": chat("two", max_tokens=5),
    "log probabilities": pb.RunRequest(
        model=MODEL, text="x", logprobs=pb.LogprobOptions(top=2), sampling=pb.Sampling(**SAMPLED)
    ),
    "tool": with_tool(),
}
EMBED = pb.EmbedRequest(model=VECTORS, texts=["where is new york", "the program"])
COUNT = pb.CountTokensRequest(model=MODEL, text="where is new york")


def events(messages: list[pb.RunResponse]) -> list[pb.RunResponse]:
    """Return the messages without their ids and times."""
    for message in messages:
        message.started.ClearField("request_id") if message.HasField("started") else None
        message.completed.ClearField("timings") if message.HasField("completed") else None
    return messages


async def all_of(stub, request: pb.RunRequest) -> list[pb.RunResponse]:
    return events([message async for message in stub.Run(request)])


@pytest.fixture(scope="module")
def catalog(tiny_model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    encoder = write_encoder(folder / "bert", "bert")
    path = write_catalog(folder / "catalog.toml", tiny_model("llama-2"))
    source = (
        f'name = "{VECTORS}"\ndescription = ""\ntask = "embedding"\nsource = {{ path = {json.dumps(str(encoder))} }}'
    )
    path.write_text(f'{path.read_text()}\n[[models]]\n{source}\nprecision = "float32"\ncontext_length = 50\n')
    return path


@pytest.fixture(scope="module")
def recorded(catalog, tmp_path_factory) -> tuple[Path, dict[str, object]]:
    """A folder of recordings, with the replies that were recorded."""
    path = tmp_path_factory.mktemp("recordings")

    async def record() -> dict[str, object]:
        async with running_server(catalog, recordings=path, recordings_mode="record") as running:
            stub = running.stub
            replies: dict[str, object] = {name: await all_of(stub, request) for name, request in RUNS.items()}
            replies |= {"embed": await stub.Embed(EMBED), "count": await stub.CountTokens(COUNT)}
            return replies | {"models": await stub.ListModels(pb.ListModelsRequest())}

    return path, asyncio.run(record())


@pytest.fixture
async def replaying(recorded, catalog):
    async with running_server(catalog, recordings=recorded[0]) as running:
        yield running


async def test_every_reply_is_replayed_message_by_message(replaying, recorded):
    stub, replies = replaying.stub, recorded[1]
    for name, request in RUNS.items():
        assert await all_of(stub, request) == replies[name], name
    assert await stub.Embed(EMBED) == replies["embed"]
    assert await stub.CountTokens(COUNT) == replies["count"]
    assert await stub.ListModels(pb.ListModelsRequest()) == replies["models"]
    assert replaying.server.servicer.models == {}


async def test_a_request_without_a_recording_is_refused_with_the_first_difference(replaying, recorded):
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await all_of(replaying.stub, chat("ode", **SAMPLED))
    info = details(refused.value)["ErrorInfo"]
    assert (refused.value.code(), info.reason) == (grpc.StatusCode.NOT_FOUND, "NOT_RECORDED")
    found = dict(info.metadata)
    assert found.pop("nearest").startswith("tiny.one.")
    folder = str(recorded[0])
    assert found == {
        "folder": folder,
        "command": f"tailrace serve --record {folder} --replay {folder}",
        "field": "chat.turns[0].content",
        "requested": '"ode"',
        "recorded": '"one"',
    }


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model": "@cf/test/other"}, "UNKNOWN_MODEL"),
        ({"model": VECTORS}, "WRONG_TASK"),
        ({"sampling": pb.Sampling(temperature=9)}, "INVALID_FIELD"),
    ],
)
async def test_a_request_that_a_model_would_refuse_is_refused_alike(replaying, change, reason):
    request = pb.RunRequest(model=MODEL, text="x")
    request.MergeFrom(pb.RunRequest(**change))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await all_of(replaying.stub, request)
    assert details(refused.value)["ErrorInfo"].reason == reason


async def test_a_refusal_by_the_model_is_replayed(catalog, tmp_path):
    last_is_users = chat("continue me")
    last_is_users.chat.continue_final_turn = True
    requests = [chat("word " * 3000), last_is_users]
    found = []
    for mode in ("record", "replay"):
        async with running_server(catalog, recordings=tmp_path, recordings_mode=mode) as running:
            for request in requests:
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await all_of(running.stub, request)
                found.append((refused.value.code(), refused.value.details(), details(refused.value)))
    assert [each["ErrorInfo"].reason for _, _, each in found[:2]] == ["PROMPT_TOO_LONG", "INVALID_FIELD"]
    assert found[2:] == found[:2]
    assert len(RecordingsFolder(tmp_path, "replay")) == 2


async def test_a_refusal_by_a_busy_machine_is_not_recorded(catalog, tmp_path, monkeypatch):
    def run_out_of_time(check, grammar):
        raise ValueError(TOO_SLOW)

    request = chat("use a document", max_tokens=20, seed=1)
    request.response_format.json_schema = '{"type": "string", "pattern": "^(a|b){1,20}$"}'
    monkeypatch.setattr(GrammarCheck, "run", run_out_of_time)
    async with running_server(catalog, recordings=tmp_path, recordings_mode="record") as running:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await all_of(running.stub, request)
        assert "response_format.json_schema" in refused.value.details()
        monkeypatch.undo()
        reply = await all_of(running.stub, request)
    assert reply[-1].HasField("completed") and len(RecordingsFolder(tmp_path, "replay")) == 1


async def test_auto_replays_what_is_recorded_and_records_the_rest(recorded, catalog, tmp_path):
    for file in recorded[0].iterdir():
        (tmp_path / file.name).write_text(file.read_text())
    async with running_server(catalog, recordings=tmp_path, recordings_mode="auto") as running:
        assert await all_of(running.stub, RUNS["no seed"]) == recorded[1]["no seed"]
        assert running.engine.totals.queried_tokens == (before := running.engine.totals.queried_tokens)
        new = await all_of(running.stub, chat("three", max_tokens=5))
        assert running.engine.totals.queried_tokens > before
        assert await all_of(running.stub, chat("three", max_tokens=5)) == new
    assert len(RecordingsFolder(tmp_path, "replay")) == len(RecordingsFolder(recorded[0], "replay")) + 1


async def test_recording_replaces_an_old_recording_once_and_then_replays_it(recorded, catalog, tmp_path):
    request = chat("again and again", max_tokens=8, temperature=3.0)
    first = None
    for _ in range(2):
        async with running_server(catalog, recordings=tmp_path, recordings_mode="record") as running:
            replies = await asyncio.gather(*(all_of(running.stub, request) for _ in range(4)))
        assert replies == [replies[0]] * 4
        assert replies[0] != first
        first = replies[0]
    assert len(RecordingsFolder(tmp_path, "replay")) == 1


async def test_neither_a_cancelled_nor_a_refused_request_is_recorded(catalog, tmp_path):
    async with running_server(catalog, recordings=tmp_path, recordings_mode="record") as running:
        call = running.stub.Run(chat("endless", max_tokens=1500, temperature=0.0))
        await anext(aiter(call))
        call.cancel()
        await until(lambda: running.engine.num_in_flight == 0)
        with pytest.raises(grpc.aio.AioRpcError):
            await all_of(running.stub, chat("x", temperature=9))
        # The turn of the cancelled request is over: an equal one is not held up by it.
        equal = running.stub.Run(chat("endless", max_tokens=1500, temperature=0.0))
        await anext(aiter(equal))
        equal.cancel()
    assert [file.name for file in tmp_path.iterdir()] == ["models.json"]


async def test_a_replay_that_the_client_leaves_ends(replaying):
    call = replaying.stub.Run(RUNS["text"])
    await anext(aiter(call))
    call.cancel()
    assert await all_of(replaying.stub, RUNS["text"])


async def test_a_reply_that_cannot_be_written_is_sent_and_reported(catalog, tmp_path, caplog):
    path = tmp_path / "gone"
    async with running_server(catalog, recordings=path, recordings_mode="record") as running:
        (path / "models.json").unlink()
        path.rmdir()
        assert await all_of(running.stub, RUNS["no seed"])
    assert f"a reply could not be recorded in {path}: No such file or directory" in caplog.text
