"""The announcement of `tailrace serve --replay`: what the folder contains, and a request that it answers."""

import json

import pytest

from inference_server.grpc_api.recordings.canonical import canonical
from inference_server.grpc_api.recordings.folder import RecordingsFolder
from inference_server.grpc_api.recordings.recording import Recording
from tailrace.v1 import inference_pb2 as pb
from tailrace_cli.serving import announcement
from tailrace_cli.serving.replayed import read_recordings
from tests.inference_server.grpc_api.recordings.messages import DEFAULTS, MODEL, reply, run

OTHER = "@cf/test/other"


@pytest.fixture
def record(tmp_path, monkeypatch):
    """Returns a function that writes recordings of requests, and reads their folder as `tailrace serve` does."""
    monkeypatch.setenv("TAILRACE_RECORDINGS", str(tmp_path / "recordings"))
    monkeypatch.delenv("TAILRACE_PROFILE", raising=False)

    def write(*requests):
        folder = RecordingsFolder(tmp_path / "recordings", "record")
        folder.add_models([pb.Model(name=name, sampling_defaults=DEFAULTS) for name in (MODEL, OTHER)])
        for request in requests:
            method = "Run" if isinstance(request, pb.RunRequest) else "CountTokens"
            answer = (
                reply(pb.Delta(text="a", tokens=1)) if method == "Run" else [pb.CountTokensResponse(prompt_tokens=1)]
            )
            folder.save(Recording(method, canonical(request, DEFAULTS), answer))
        return read_recordings()

    return write


def test_the_shortest_request_is_announced_with_the_values_that_are_no_defaults(record):
    sampling = pb.Sampling(seed=2**33, max_tokens=7, temperature=0.5, top_p=0.9, stop=["END"])
    found = record(run("it's short", sampling=sampling), run("long " * 30))
    assert found.counts == {MODEL: 2} and found.model == MODEL
    values = {"seed": 2**33, "max_tokens": 7, "temperature": 0.5, "stop": ["END"]}
    assert json.loads(found.body) == {"prompt": "it's short", **values, "stream": True}


def test_a_conversation_is_announced_as_messages(record):
    request = run("b")
    request.chat.turns.insert(0, pb.ChatTurn(role="system", content="a"))
    messages = [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]
    assert json.loads(record(request).body) == {"messages": messages, "stream": True}


@pytest.mark.parametrize(
    "request_",
    [
        run("word " * 200),
        run("a", adapter="x"),
        run("a", sampling=pb.Sampling(seed=2**60)),
        pb.RunRequest(model=MODEL, text="raw"),
        pb.CountTokensRequest(model=MODEL, text="counted"),
    ],
)
def test_other_requests_are_only_counted(record, request_, capsys, monkeypatch):
    found = record(request_)
    assert (found.counts, found.model, found.body) == ({MODEL: 1}, "", "")
    monkeypatch.delenv("TAILRACE_RECORDINGS_MODE", raising=False)
    announcement.announce("127.0.0.1:8787", 1.0)
    text = capsys.readouterr().out
    assert "It replays the one reply recorded in" in text and "curl" not in text
    assert f"Recorded replies by model: {MODEL} (1)\nA playground is at" in text


def test_a_profile_whose_streams_have_a_default_limit_needs_a_request_with_one(record, monkeypatch):
    monkeypatch.setenv("TAILRACE_PROFILE", "2026")
    assert record(run("a")).body == ""
    assert json.loads(record(run("a", sampling=pb.Sampling(max_tokens=3))).body)["max_tokens"] == 3


def test_models_are_counted_in_their_order(record, capsys, monkeypatch):
    other = run("b")
    other.model = OTHER
    found = record(other, run("a"), run("c"))
    assert list(found.counts.items()) == [(MODEL, 2), (OTHER, 1)]
    monkeypatch.delenv("TAILRACE_RECORDINGS_MODE", raising=False)
    announcement.announce("127.0.0.1:8787", 1.0)
    text = capsys.readouterr().out
    assert "It replays the 3 replies recorded in" in text and f"/ai/run/{MODEL}" in text
    assert (
        f"""-d '{{"prompt": "a", "stream": true}}'\n\nRecorded replies by model: {MODEL} (2), {OTHER} (1)\n""" in text
    )


def test_a_folder_that_was_removed_is_named(record, tmp_path, monkeypatch):
    record(run("a"))
    monkeypatch.setenv("TAILRACE_RECORDINGS", str(tmp_path / "gone"))
    assert read_recordings().counts == {}
