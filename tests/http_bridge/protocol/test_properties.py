"""Any text and any JSON: a text stays one event, and a client's values arrive unchanged."""

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from http_bridge.api.binding.tensor_replies import FAMILIES, TensorWriter
from http_bridge.api.openai.replies import ChatWriter, CompletionWriter
from http_bridge.api.workers_ai.replies import WorkersAiWriter, enveloped
from http_bridge.errors import ApiError
from http_bridge.protocol import sse
from http_bridge.protocol.profiles import PROFILES
from http_bridge.protocol.validation.documents import load
from tailrace.v1 import inference_pb2 as pb

QUICK = settings(max_examples=60, deadline=None, derandomize=True)
# Half of a surrogate pair is not a character, so that gRPC messages cannot contain one.
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**17), 10**17) | st.floats(-1e300, 1e300) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=10,
)


def payloads(stream: bytes) -> list[dict]:
    """Return a stream's events by HTML's specification, split into lines as Python's clients do."""
    blocks = stream.decode().split("\n\n")
    assert blocks.pop() == ""
    for block in blocks:
        assert block.splitlines() == [block] and block.startswith("data: ")
    return [json.loads(block.removeprefix("data: ")) for block in blocks if block != "data: [DONE]"]


def writers():
    for profile in PROFILES.values():
        yield WorkersAiWriter(profile, enveloped, has_padding=False, is_json=False, has_tools=False)
    yield WorkersAiWriter(PROFILES["default"], enveloped, has_padding=True, is_json=False, has_tools=True)
    for usage in ("own_chunk", "last_choice", "nowhere"):
        yield ChatWriter(request_id="a-b", model="m", usage=usage)
        yield CompletionWriter(request_id="a-b", model="m", usage=usage, echo="")
    for family in FAMILIES:
        yield TensorWriter(family, "prompt")


def text_of(payload: dict) -> str:
    if "choices" in payload:
        return "".join(
            choice.get("text") or choice.get("delta", {}).get("content") or "" for choice in payload["choices"]
        )
    return payload["result"][0]["value"][0] if "result" in payload else payload["response"]


@given(pieces=st.lists(texts, max_size=5))
@QUICK
def test_every_writer_keeps_any_text_in_its_stream(pieces):
    completed = pb.Completed(finish_reason=pb.FINISH_REASON_STOP)
    for writer in writers():
        stream = b"".join([*map(writer.text, pieces), writer.finish(completed)])
        assert "".join(map(text_of, payloads(stream))) == "".join(pieces), type(writer)


@given(text=texts)
@QUICK
def test_the_fast_path_for_text_gives_the_same_event(text):
    assert sse.text_event(text, None) == sse.event({"response": text})
    assert sse.text_event(text, "p1") == sse.event({"response": text, "p": "p1"})


@given(description=texts, name=texts)
@QUICK
def test_a_failure_with_any_text_is_one_event(description, name):
    for writer in writers():
        assert len(payloads(writer.error(ApiError(500, 3000, description), name))) == 1


@given(payload=st.dictionaries(texts, values, max_size=4))
@QUICK
def test_json_survives_an_event_and_a_body(payload):
    assert payloads(sse.event(payload)) == [payload]
    assert load(json.dumps(payload).encode(), 10**6) == payload
    assert load(json.dumps(payload, ensure_ascii=False).encode(), 10**6) == payload


@given(data=st.binary(max_size=100) | st.text(max_size=50).map(lambda text: text.encode("utf-8", "surrogatepass")))
@QUICK
def test_any_body_is_parsed_or_refused(data):
    try:
        assert isinstance(load(data, 1000), dict)
    except ApiError as error:
        assert error.status in (400, 413)
