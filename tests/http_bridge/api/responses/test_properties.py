"""Properties of the parser of the Responses API: any body is a request or a refusal with status 400."""

from types import SimpleNamespace
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.datastructures import Headers, QueryParams

from http_bridge.api.base import IncomingRequest
from http_bridge.api.reply_writer import json_bytes
from http_bridge.api.responses.items import _READERS, _WHY_REFUSED, _WITHOUT_TEXT
from http_bridge.api.responses.requests import responses_job
from http_bridge.errors import ApiError
from tailrace.v1 import inference_pb2 as pb
from tests.http_bridge.conftest import BODIES

INCOMING = IncomingRequest(
    request_id="7a2e0786-21cc-4324-8d5a-b3ab8476d488",
    account="acc",
    is_at_account=False,
    model="",
    headers=Headers({}),
    query=QueryParams(""),
    data=b"",
    max_bytes=10**6,
    has_padding=False,
    default_profile="default",
    bodies=BODIES,
    models=SimpleNamespace(
        find_model=lambda name: None, find_adapter=lambda name: None, has_current_model=lambda name: True
    ),
)
SCALARS = st.none() | st.booleans() | st.integers(-2, 300) | st.floats(-1, 2) | st.sampled_from(["", "a", "{}", "[1]"])
KINDS = [*_READERS, *_WITHOUT_TEXT, *_WHY_REFUSED, "function", "custom", "namespace", "allowed_tools", "grammar", "x"]
KINDS += ["input_text", "output_text", "refusal", "input_image", "text", "json_schema", "auto", "required", "none"]
KEYS = [
    "type",
    "role",
    "content",
    "name",
    "namespace",
    "arguments",
    "input",
    "output",
    "call_id",
    "id",
    "tools",
    "mode",
]
KEYS += ["function", "parameters", "format", "schema", "summary", "encrypted_content", "text", "action", "outcome"]
VALUES = st.recursive(
    SCALARS | st.sampled_from([*KINDS, "user", "assistant"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=5),
    max_leaves=5,
)
ITEMS = st.fixed_dictionaries(
    {"type": st.sampled_from(KINDS)}, optional={key: VALUES for key in KEYS if key != "type"}
) | st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=6)
BODY_KEYS = [
    "instructions",
    "tools",
    "tool_choice",
    "text",
    "reasoning",
    "include",
    "stream",
    "stream_options",
    "options",
]
BODY_KEYS += [
    "max_output_tokens",
    "temperature",
    "top_logprobs",
    "metadata",
    "parallel_tool_calls",
    "chat_template_kwargs",
]
DOCUMENTS = st.fixed_dictionaries(
    {"model": st.just("m"), "input": st.just("hi") | st.lists(ITEMS, min_size=1, max_size=4)},
    optional={"tools": st.lists(ITEMS, max_size=3), "tool_choice": ITEMS | VALUES}
    | {key: VALUES for key in BODY_KEYS if key not in ("tools", "tool_choice")},
)


@given(DOCUMENTS)
@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
def test_any_body_is_a_request_or_a_refusal(document: dict[str, Any]) -> None:
    try:
        job = responses_job(INCOMING, document, wrap=json_bytes)
    except ApiError as error:
        assert error.status in (400, 404)
        return
    # What is returned with every response is JSON.
    assert job.request.chat.turns and job.writer.start(pb.Started())
