"""The command's reading of the bridge's event streams and errors."""

import http.server
import json
import threading
from contextlib import contextmanager

import pytest

from tailrace_cli.client import Piece, ReplyStats, Request
from tailrace_cli.errors import Failure, Refusal, TooLong
from tailrace_cli.rest import RestClient, _body, _pieces

COMMENT = b": keep-alive\n\n"
DONE = b"data: [DONE]\n\n"


def event(delta=None, **other):
    choices = [] if delta is None else [{"delta": delta, "finish_reason": other.pop("finish", None)}]
    return b"data: " + json.dumps({"choices": choices, **other}).encode() + b"\n\n"


def pieces(*events):
    stats = ReplyStats()
    lines = COMMENT.join([b"", *events]).splitlines(keepends=True)
    return list(_pieces(lines, stats)), stats


def test_text_thoughts_finish_reason_and_counts_are_read():
    usage = {"prompt_tokens": 3, "completion_tokens": 2}
    found, stats = pieces(
        event({"reasoning_content": "hm"}),
        event({"content": "New"}),
        event({}, finish="length"),
        event(usage=usage),
        DONE,
    )
    assert found == [Piece("hm", is_thinking=True), Piece("New")]
    assert (stats.finish, stats.prompt_tokens, stats.completion_tokens) == ("length", 3, 2)


def test_comments_alone_are_not_the_end_of_a_stream():
    with pytest.raises(Refusal, match="too early"):
        pieces()


def test_an_error_in_a_stream_is_a_sentence():
    with pytest.raises(Refusal, match=r"^The reply failed: It broke\.$"):
        pieces(event({"content": "x"}), event(error={"message": "It broke"}))


@contextmanager
def bridge(status, body, **headers):
    """Yield the URL of a server that answers every request in the same way."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.rfile.read(int(self.headers.get("content-length") or 0))
            self.send_response(status)
            for name, value in {"content-length": str(len(body)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, *arguments):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def error_body(code, message="AiError: AiError: words (id)", openai=None):
    body = {"errors": [{"code": code, "message": message}], "success": False, "messages": []}
    return json.dumps(body | ({"error": {"message": openai}} if openai else {})).encode()


@pytest.mark.parametrize(
    ("status", "code", "token", "account", "sentence"),
    [
        (401, 10000, "t", "", "The bridge does not accept this API token."),
        (401, 10000, "", "", "The bridge requires an API token."),
        (400, 9106, "", "", "The bridge requires an API token."),
        (403, 10000, "t", "acme", "The API token is not for the account acme."),
    ],
)
def test_a_refused_token_is_explained(status, code, token, account, sentence):
    with bridge(status, error_body(code)) as url, pytest.raises(Refusal) as caught:
        list(RestClient(url, token, account).stream(Request(model="m", prompt="p"), ReplyStats()))
    assert str(caught.value).startswith(sentence)


def test_an_error_has_the_plain_words_of_the_bridge():
    body = error_body(5006, openai="Bad input: Error: '/x' must be <= 5")
    for headers, sentence in [
        ({"tailrace_error": "x must be at most 5 %C3%A9."}, "x must be at most 5 é."),
        ({}, "'/x' must be <= 5."),
    ]:
        with bridge(400, body, **headers) as url, pytest.raises(Refusal) as caught:
            list(RestClient(url, "").stream(Request(model="m", prompt="p"), ReplyStats()))
        assert str(caught.value) == sentence


UNREACHED = "Upstream service unavailable"


def test_a_bridge_without_an_inference_server_names_the_next_step():
    body = error_body(7009, f"AiError: AiError: {UNREACHED} (id)", openai=UNREACHED)
    with bridge(503, body) as url:
        for call in (
            lambda client: client.models(),
            lambda client: list(client.stream(Request(model="m", prompt="p"), ReplyStats())),
        ):
            with pytest.raises(Refusal) as caught:
                call(RestClient(url, ""))
            assert "`tailrace serve`" in str(caught.value) and "`tailrace doctor`" in str(caught.value)
    with pytest.raises(Refusal, match="The reply failed: The bridge reaches no inference server"):
        pieces(event({"content": "x"}), event(error={"message": UNREACHED}))


def test_a_model_that_loads_keeps_the_sentence_of_the_bridge():
    loading = "The model m is not ready: it is still loading or does not respond. Please try again in a few seconds."
    with bridge(503, error_body(7009, openai=loading)) as url, pytest.raises(Refusal, match="still loading"):
        list(RestClient(url, "").stream(Request(model="m", prompt="p"), ReplyStats()))


def test_a_continued_answer_is_the_last_message():
    turns = (("user", "one"), ("assistant", "re"))
    body = _body(Request(model="m", prompt="", system="s", turns=turns, continues=True))
    assert body["continue_final_message"] is True
    assert [message["content"] for message in body["messages"]] == ["s", "one", "re"]
    assert "continue_final_message" not in _body(Request(model="m", prompt="two", turns=turns))


def test_a_prompt_that_is_too_long_has_its_own_error():
    with bridge(400, error_body(5021, openai="Too long.")) as url, pytest.raises(TooLong, match="Too long"):
        list(RestClient(url, "").stream(Request(model="m", prompt="p"), ReplyStats()))


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"result": [1]}', b'{"errors": 3}'])
@pytest.mark.parametrize("status", [200, 404])
def test_another_program_is_not_taken_for_a_bridge(status, body):
    with bridge(status, body) as url, pytest.raises((Failure, Refusal)) as caught:
        RestClient(url, "").models()
    assert str(caught.value).endswith(".") and "Traceback" not in str(caught.value)


@pytest.mark.parametrize(("token", "account"), [("a b", ""), ("é", ""), ("", "a/b"), ("", "a b")])
def test_an_invalid_token_or_account_is_refused_before_a_request(token, account):
    with pytest.raises(Failure):
        RestClient("http://127.0.0.1:1", token, account)
