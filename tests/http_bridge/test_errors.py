"""The HTTP responses to failures of the inference server."""

import asyncio
import zlib

import grpc
import pytest
from google.protobuf import duration_pb2
from google.rpc import error_details_pb2

from http_bridge.protocol.grpc_errors import unknown_model
from tests.http_bridge.conftest import RUN_URL

Code = grpc.StatusCode
FIELD = error_details_pb2.BadRequest(
    field_violations=[
        error_details_pb2.BadRequest.FieldViolation(field="sampling.top_k", description="must be >= 1"),
        error_details_pb2.BadRequest.FieldViolation(field="chat.turns[3].role", description="is too long"),
    ]
)
RETRY = error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(seconds=2, nanos=1))
TOO_LONG = (
    "The estimated number of input and maximum output tokens (2049) exceeded this model context window limit (2048). "
    "The prompt alone has 2049 tokens."
)
# The default model's name is among those that Cloudflare removed.
UNKNOWN = (
    "This model was deprecated on 2026-05-30. Please use an alternative model. No server here hosts it: accept its licence on "
    "https://huggingface.co/meta-llama/Llama-2-7b-chat-hf and set HF_TOKEN, then `tailrace serve "
    "@cf/meta/llama-2-7b-chat-int8` serves it; the models here are @cf/meta/llama-2-7b-chat-int8, @hf/other/second."
)
LOADING = (
    "The model @cf/meta/llama-2-7b-chat-int8 is not ready: it is still loading or does not respond. "
    "Please try again in a few seconds."
)
INTERNAL = "Internal error; the log of the server has the cause under this request id."
ROWS = [
    (Code.NOT_FOUND, "UNKNOWN_MODEL", 400, 5028, UNKNOWN),
    (Code.INVALID_ARGUMENT, "PROMPT_TOO_LONG", 413, 5021, TOO_LONG),
    (Code.RESOURCE_EXHAUSTED, "CAPACITY_EXCEEDED", 429, 3040, "Capacity temporarily exceeded, please try again."),
    (Code.UNAVAILABLE, "SERVER_STOPPING", 503, 7009, "Upstream service unavailable"),
    (Code.UNAVAILABLE, "MODEL_NOT_READY", 503, 7009, LOADING),
    (Code.INTERNAL, "GENERATION_FAILED", 500, 3000, "The model failed while generating this reply."),
    (Code.UNAVAILABLE, "", 503, 7009, "Upstream service unavailable"),
    (Code.DEADLINE_EXCEEDED, "", 408, 3007, "Request timeout"),
    (Code.RESOURCE_EXHAUSTED, "", 413, 3006, "Request is too large"),
    (Code.UNKNOWN, "", 500, 3000, INTERNAL),
    (
        Code.INTERNAL,
        "A_REASON_OF_THE_FUTURE",
        500,
        3000,
        INTERNAL,
    ),
]


@pytest.mark.parametrize(("grpc_code", "reason", "status", "code", "description"), ROWS)
async def test_refusal_keeps_its_status_and_its_envelope(
    bridge, servicer, grpc_code, reason, status, code, description
):
    servicer.script = lambda reply: reply.refuse(grpc_code, reason, prompt_tokens="2049", context_length="2048")
    for stream in (False, True):
        response = await bridge.ask({"prompt": "hi", "stream": stream})
        request_id = response.headers["cf-ai-req-id"]
        error = {"message": f"AiError: AiError: {description} ({request_id})", "code": code}
        assert response.status_code == status
        assert response.headers["content-type"] == "application/json"
        assert response.json() == {"errors": [error], "success": False, "result": {}, "messages": []}
        assert list(response.json()) == ["errors", "success", "result", "messages"]
        assert servicer.request_ids[-1] == request_id


async def test_invalid_field_of_the_server_names_the_fields(bridge, servicer):
    servicer.script = lambda reply: reply.refuse(Code.INVALID_ARGUMENT, "INVALID_FIELD", FIELD)
    response = await bridge.ask()
    assert response.status_code == 400
    assert "Bad input: Error: '/top_k' must be >= 1, '/messages/3/role' is too long (" in response.text


async def test_a_loading_model_has_a_retry_after(bridge, servicer):
    servicer.script = lambda reply: reply.refuse(Code.UNAVAILABLE, "MODEL_NOT_READY")
    response = await bridge.ask()
    assert (response.status_code, response.headers["retry-after"]) == (503, "5")


async def test_an_unsupported_content_encoding_is_named(bridge, servicer):
    for encoding, content in (("zstd", b"\x28\xb5\x2f\xfd{}"), ("br", b"\x8b\x07\x80{}\x03")):
        response = await bridge.client.post(RUN_URL, content=content, headers={"content-encoding": encoding})
        assert response.status_code == 400
        assert f"the content-encoding {encoding} is not supported" in response.json()["errors"][0]["message"]
    response = await bridge.client.post(RUN_URL, content=b'{"prompt":"hi"}', headers={"content-encoding": "br"})
    assert response.status_code == 200


@pytest.mark.parametrize("headers", [{"content-encoding": "deflate"}, {}])
async def test_a_deflated_body_is_unpacked(bridge, headers):
    response = await bridge.client.post(RUN_URL, content=zlib.compress(b'{"prompt":"hi"}'), headers=headers)
    assert response.status_code == 200
    response = await bridge.client.post(RUN_URL, content=zlib.compress(b'{"prompt":"hi"}')[:-4], headers=headers)
    assert "deflate data ends too early" in response.json()["errors"][0]["message"]


async def test_a_deflated_body_without_zlibs_header_is_unpacked(start_bridge):
    bridge = await start_bridge(max_body_bytes=1000)
    for text, status in ((b'{"prompt":"hi"}', 200), (b'{"prompt":"%b"}' % (b"x" * 5000), 413)):
        packed = zlib.compress(text, wbits=-zlib.MAX_WBITS)
        response = await bridge.client.post(RUN_URL, content=packed, headers={"content-encoding": "deflate"})
        assert response.status_code == status


async def test_retry_after_is_rounded_up(bridge, servicer):
    servicer.script = lambda reply: reply.refuse(Code.RESOURCE_EXHAUSTED, "CAPACITY_EXCEEDED", RETRY)
    response = await bridge.ask()
    assert response.headers["retry-after"] == "3"


async def test_a_reason_of_another_domain_is_ignored(bridge, servicer):
    info = error_details_pb2.ErrorInfo(reason="UNKNOWN_MODEL", domain="elsewhere")
    servicer.script = lambda reply: reply.refuse(Code.INTERNAL, "", info)
    assert (await bridge.ask()).status_code == 500


async def test_unreadable_details_leave_the_status_code(bridge, servicer):
    async def refuse(reply):
        await reply.context.abort(Code.RESOURCE_EXHAUSTED, "x", (("grpc-status-details-bin", b"\xff\xff"),))

    servicer.script = refuse
    assert (await bridge.ask()).status_code == 413


async def test_a_failure_before_the_json_reply_keeps_its_status(bridge, servicer):
    async def fail(reply):
        await reply.accept()
        await reply.say("New")
        await reply.refuse(Code.INTERNAL, "GENERATION_FAILED")

    servicer.script = fail
    assert (await bridge.ask()).status_code == 500


async def test_json_reply_without_completed_is_an_internal_error(bridge, servicer):
    servicer.script = lambda reply: reply.accept()
    response = await bridge.ask()
    assert response.status_code == 500
    assert response.json()["errors"][0]["code"] == 3000


async def test_exception_of_the_server_is_not_shown(bridge, servicer):
    async def crash(reply):
        raise ValueError("secret detail")

    servicer.script = crash
    response = await bridge.ask()
    assert response.status_code == 500
    assert "secret" not in response.text


async def test_deadline_before_the_reply_is_a_request_timeout(start_bridge, servicer):
    servicer.script = lambda reply: reply.forever()
    bridge = await start_bridge(request_timeout_seconds=0.3)
    response = await bridge.ask({"prompt": "hi", "stream": True})
    assert response.status_code == 408
    assert response.json()["errors"][0]["code"] == 3007
    async with asyncio.timeout(5):
        await servicer.cancelled.wait()


async def test_unavailable_before_acceptance_is_tried_again(bridge, servicer):
    servicer.scripts = [lambda reply: reply.refuse(Code.UNAVAILABLE, "SERVER_STOPPING")] * 2
    response = await bridge.ask()
    assert response.status_code == 200
    assert len(servicer.requests) == 3
    assert set(servicer.request_ids) == {response.headers["cf-ai-req-id"]}


async def test_unavailable_is_tried_three_times_at_most(bridge, servicer):
    servicer.script = lambda reply: reply.refuse(Code.UNAVAILABLE)
    assert (await bridge.ask()).status_code == 503
    assert len(servicer.requests) == 3


async def test_unavailable_after_acceptance_is_not_tried_again(bridge, servicer):
    async def accept_and_stop(reply):
        await reply.accept()
        await reply.refuse(Code.UNAVAILABLE, "SERVER_STOPPING")

    servicer.script = accept_and_stop
    assert (await bridge.ask()).status_code == 503
    assert len(servicer.requests) == 1


@pytest.mark.parametrize("code", [Code.RESOURCE_EXHAUSTED, Code.INTERNAL, Code.ABORTED, Code.UNKNOWN])
async def test_other_refusals_are_not_tried_again(bridge, servicer, code):
    servicer.script = lambda reply: reply.refuse(code)
    await bridge.ask()
    assert len(servicer.requests) == 1


async def test_a_missing_server_is_unavailable(start_bridge):
    bridge = await start_bridge(grpc_address="127.0.0.1:1")
    response = await bridge.ask({"prompt": "hi", "stream": True})
    assert response.status_code == 503
    assert response.json()["errors"][0]["code"] == 7009


@pytest.mark.parametrize(
    ("model", "code", "more"),
    [
        ("@cf/x/y", 5007, ": the models here are @cf/a/b"),
        ("@cf/a/bb", 5007, ": did you mean @cf/a/b? The models here are @cf/a/b"),
        ("@cf/qwen/qwq-32b", 5007, ": `tailrace serve @cf/qwen/qwq-32b` serves it; the models here are @cf/a/b"),
        ("@cf/google/embeddinggemma-300m", 5007, ": no engine of Tailrace runs it ("),
        ("@cf/openai/gpt-oss-120b", 5007, "serves it; the models here are @cf/a/b"),
        (
            "@cf/meta/llama-3.2-1b-instruct",
            5007,
            ": accept its licence on https://huggingface.co/meta-llama/Llama-3.2-1B-Instruct",
        ),
        ("@cf/microsoft/phi-2", 5028, "No server here hosts it: `tailrace serve @cf/microsoft/phi-2` serves it; "),
    ],
)
def test_an_unknown_model_of_workers_ai_has_the_step_that_serves_it(model, code, more):
    error = unknown_model(model, ["@cf/a/b"])
    assert (error.status, error.code, error.is_unknown_model) == (400, code, True)
    assert more in error.description


async def test_a_removed_model_is_404_for_openais_clients(bridge, servicer):
    servicer.script = lambda reply: reply.refuse(Code.NOT_FOUND, "UNKNOWN_MODEL")
    body = {"model": "@cf/microsoft/phi-2", "messages": [{"role": "user", "content": "hi"}]}
    response = await bridge.ask(body, url="/v1/chat/completions")
    assert (response.status_code, response.json()["error"]["code"]) == (404, "model_not_found")


async def test_a_request_without_a_recording_gets_the_difference_and_the_command(bridge, servicer):
    found = {"field": "chat.turns[0].content", "requested": '"a"', "recorded": '"b"', "nearest": "tiny.b.json"}
    given = {"folder": "recordings", "command": "tailrace serve --record recordings --replay recordings", **found}
    servicer.script = lambda reply: reply.refuse(Code.NOT_FOUND, "NOT_RECORDED", **given)
    response = await bridge.ask({"prompt": "a"})
    (error,) = response.json()["errors"]
    assert (response.status_code, error["code"]) == (404, 5098)
    assert error["message"].startswith(
        'AiError: AiError: No recording of this request in recordings: \'/messages/0/content\' is "a", and "b" in the nearest '
        "recording tiny.b.json. To record it, send it to a server with TAILRACE_RECORDINGS_MODE=auto, or to this one: "
        "tailrace serve --record recordings --replay recordings ("
    )


async def test_a_quoted_name_in_a_difference_keeps_its_dots(bridge, servicer):
    found = {"field": 'chat.tools[0].parameters["a.b[1]"].type', "requested": "1", "recorded": "2", "nearest": "x.json"}
    servicer.script = lambda reply: reply.refuse(Code.NOT_FOUND, "NOT_RECORDED", **found)
    response = await bridge.ask({"prompt": "a"})
    assert "'/tools/0/parameters[\"a.b[1]\"]/type' is 1" in response.json()["errors"][0]["message"]
