"""The file of a recording: it keeps the whole reply, and has nothing that changes from one recording to the next."""

import json

import pytest

from inference_server.errors import FieldViolation, InvalidField, PromptTooLong
from inference_server.grpc_api.conversion import response
from inference_server.grpc_api.recordings.canonical import canonical
from inference_server.grpc_api.recordings.recording import Recording
from inference_server.grpc_api.recordings.refusal_json import refusal_json, refusal_of_json
from tailrace.v1 import inference_pb2 as pb
from tests.inference_server.grpc_api.recordings.messages import candidate, reply, run

DELTAS = [
    pb.Delta(reasoning="let me see", tokens=2),
    pb.Delta(text="", tokens=1),
    pb.Delta(text="New\u2028 Yörk \U0001f5fd", tokens=1),
    pb.Delta(
        text="\x00",
        tokens=1,
        logprobs=[
            pb.TokenLogprob(token=candidate(b"\xf0\x9f", -0.1), top=[candidate(b"", -1e-7), candidate(b" a", -3.25)])
        ],
    ),
    pb.Delta(text=" joined", tokens=3),
    pb.Delta(tokens=1, tool_calls=[pb.ToolCall(id="c1", name="f", arguments='{"b": 1, "a": 2}')]),
]


def recorded(messages: list[pb.RunResponse]) -> Recording:
    return Recording("Run", canonical(run(), pb.Sampling()), messages)


def test_a_stream_is_read_back_event_by_event():
    messages = reply(*DELTAS)
    read = Recording.of_text(recorded(messages).to_text())
    assert read.reply == messages
    assert read.key == recorded(messages).key
    # Replayed as an engine's events, the messages are the same again.
    replayed = [response(event, run(), "", read.token_bytes()) for event in read.events()]
    for message in replayed:
        message.started.ClearField("model") if message.HasField("started") else None
        message.completed.ClearField("timings") if message.HasField("completed") else None
    assert replayed == messages


def test_half_of_a_surrogate_pair_in_json_is_recorded_as_its_escape():
    request = run()
    request.chat.tools.add(name="f", parameters='{"description": "\\ud83d"}')
    recording = Recording("Run", canonical(request, pb.Sampling()), reply(*DELTAS))
    assert Recording.of_text(recording.to_text().encode().decode()) == recording


@pytest.mark.parametrize(
    "error",
    [PromptTooLong(9, 5), InvalidField(FieldViolation("chat.turns", "have a role"), FieldViolation("text", "x"))],
)
def test_a_refusal_is_read_back(error):
    recording = Recording("Run", canonical(run(), pb.Sampling()), [], refusal_json(error))
    read = Recording.of_text(recording.to_text())
    assert read == recording and read.key == recorded(reply()).key
    again = refusal_of_json(read.refusal)
    assert (type(again), str(again)) == (type(error), str(error))


@pytest.mark.parametrize("error", ["x", [], {}, {"reason": "OTHER"}, {"reason": "INVALID_FIELD", "violations": []}])
def test_a_damaged_refusal_is_refused(error):
    text = json.dumps(
        {"tailrace_recording": 1, "method": "Run", "request": canonical(run(), pb.Sampling()), "error": error}
    )
    with pytest.raises(ValueError, match="is damaged"):
        Recording.of_text(text)
    with pytest.raises(ValueError, match="a refusal of the method CountTokens is not replayed"):
        Recording.of_text(text.replace('"Run"', '"CountTokens"'))


def test_ids_and_timings_are_not_recorded():
    first, second = (reply(pb.Delta(text="a", tokens=1)) for _ in range(2))
    first[0].started.request_id, first[0].started.model = "an-id", "@cf/test/tiny"
    first[-1].completed.timings.decode.FromMilliseconds(5)
    assert recorded(first).to_text() == recorded(second).to_text()


def test_each_token_is_one_line():
    lines = recorded(reply(*(pb.Delta(text=f" word{place}", tokens=1) for place in range(20)))).to_text().splitlines()
    assert '    " word7",' in lines


@pytest.mark.parametrize("method", ["Embed", "CountTokens"])
def test_other_replies_are_read_back_exactly(method):
    message = pb.CountTokensResponse(prompt_tokens=3, context_length=9)
    if method == "Embed":
        values = [0.1, -1e-30, 1 / 3, 16777217.0, 0.0]
        message = pb.EmbedResponse(embeddings=[pb.Embedding(values=values)] * 2, prompt_tokens=3)
    text = Recording(method, {"model": "m", "texts": ["a"]}, [message]).to_text()
    assert Recording.of_text(text).reply == [message]
    assert len(text.splitlines()) < 20


@pytest.mark.parametrize(
    ("old", "new", "clause"),
    [
        ('{\n  "tail', "{\n  tail", "is not JSON"),
        ("tailrace_recording", "name", "is not a recording"),
        ('_recording": 1', '_recording": 2', "has the format 2, and this version reads format 1"),
        ('"Run"', '"Sing"', "is a recording of the method Sing"),
        ('"model"', '"modle"', "is damaged"),
        ('"prompt_tokens"', '"prompt"', "is damaged"),
        ('"completed"', '"Completed"', "is damaged"),
        ("FINISH_REASON_STOP", "FINISH_REASON_UNSPECIFIED", "has no finish reason"),
        ('"a",', "7,", "is damaged"),
    ],
)
def test_a_damaged_file_is_refused_with_a_clause(old, new, clause):
    text = recorded(reply(pb.Delta(text="a", tokens=1))).to_text()
    assert old in text
    with pytest.raises(ValueError, match=clause):
        Recording.of_text(text.replace(old, new))


def test_a_reply_without_its_end_is_refused():
    with pytest.raises(ValueError, match="then one completed"):
        Recording.of_text(recorded(reply(pb.Delta(text="a", tokens=1))[:-1]).to_text())
