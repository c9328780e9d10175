"""The `tailrace` command against the real services, through REST and gRPC, and its messages about errors."""

import hashlib
import re
import subprocess
import sys

import pytest

from tests.support.processes import ROOT, free_address
from tests.tailrace_cli.command import tailrace

MODEL = "@cf/meta/llama-2-7b-chat-int8"
TRANSPORTS = pytest.mark.parametrize("transport", [[], ["--grpc"]], ids=["rest", "grpc"])


@pytest.fixture
def nowhere(stack):
    return {**stack.environment, "TAILRACE_HTTP_ADDRESS": free_address(), "TAILRACE_GRPC_ADDRESS": free_address()}


@TRANSPORTS
def test_run_prints_the_reply(stack, transport):
    options = ["--max-tokens", "12", "--temperature", "0", "--stats", *transport]
    done = tailrace("run", MODEL, "What is the capital of Japan?", *options, environment=stack.environment)
    assert (done.returncode, "Tokyo" in done.stdout) == (0, True)
    assert "completion tokens · first token after" in done.stderr


def test_run_reads_the_prompt_from_stdin(stack):
    done = tailrace("run", MODEL, "-", "--max-tokens", "3", environment=stack.environment, text="Hello")
    assert done.returncode == 0 and done.stdout.strip()


@TRANSPORTS
def test_piped_text_and_options_reach_the_first_model(stack, transport):
    schema = '{"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}'
    options = ["--max-tokens", "40", "--temperature", "0", "--top-p", "0.9", "--schema", schema, *transport]
    done = tailrace("run", "Which city?", *options, environment=stack.environment, text="I live in Tokyo.\n")
    assert (done.returncode, done.stdout[:1], '"city"' in done.stdout) == (0, "{", True)
    options = ["--raw", "--temperature", "0", "--stop", "3", *transport]
    done = tailrace("run", "llama-2-7b-chat-int8", *options, environment=stack.environment, text="0, 1, 2,")
    assert (done.returncode, done.stdout.strip()) == (0, "")


def test_ps_lists_the_served_models(stack):
    done = tailrace("ps", environment=stack.environment)
    assert done.returncode == 0
    assert done.stdout.startswith("NAME ") and f"\n{MODEL} " in done.stdout


@TRANSPORTS
def test_chat_answers_each_line_of_its_input(stack, transport):
    lines = "My name is Ada.\n\nSay yes.\n/bye\nnever read\n"
    done = tailrace("chat", "--max-tokens", "4", "--seed", "1", *transport, environment=stack.environment, text=lines)
    assert done.returncode == 0
    assert done.stderr.count("completion tokens") == 2


@TRANSPORTS
def test_models_are_listed_with_their_limits(stack, transport):
    done = tailrace("models", *transport, environment=stack.environment)
    assert done.returncode == 0
    assert MODEL in done.stdout and "2048 tokens in" in done.stdout


@TRANSPORTS
def test_an_unknown_model_is_answered_with_the_nearest_and_all_names(stack, transport):
    done = tailrace("run", "@cf/meta/lama-2-7b-chat-int8", "hi", *transport, environment=stack.environment)
    assert (done.returncode, done.stdout) == (1, "")
    start = f"The server has no model @cf/meta/lama-2-7b-chat-int8. Did you mean {MODEL}? The server has {MODEL}, "
    assert done.stderr.startswith(start) and len(done.stderr.splitlines()) == 1


@TRANSPORTS
@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["bge-small", "hi"], "@cf/baai/bge-small-en-v1.5 does not generate text: it is an embedding model."),
        (["hello"], "The server has no model hello."),
        ([MODEL, "word " * 5000], " 50"),
        ([MODEL, "hi", "--schema", '{"properties": {"a": {"$ref": "#/none"}}}'], "response_format"),
    ],
)
def test_a_refusal_is_one_sentence_without_the_words_of_the_wire(stack, transport, words, sentence):
    done = tailrace("run", *words, *transport, environment=stack.environment, text="" if "hello" not in words else "x")
    assert (done.returncode, done.stdout) == (1, "")
    assert sentence in done.stderr and len(done.stderr.splitlines()) == 1
    assert not re.search(r"AiError|Error:|oneOf|\(\d{4}\)|[A-Z]+_[A-Z]+|'/", done.stderr)


@TRANSPORTS
def test_files_and_piped_text_are_joined_and_short_names_do(stack, transport, tmp_path):
    (tmp_path / "a.txt").write_text("The capital of Japan is Tokyo.")
    words = [
        "smollm2",
        "-f",
        str(tmp_path / "a.txt"),
        "Repeat the name of the capital.",
        "--temperature",
        "0",
        *transport,
    ]
    done = tailrace("run", *words, "--max-tokens", "30", environment=stack.environment)
    assert (done.returncode, "Tokyo" in done.stdout) == (0, True)


def test_a_reader_that_ends_early_is_no_error(stack):
    command = f"{sys.executable} -m tailrace_cli run {MODEL} 'Count to ten.' | head -c 1"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, env=stack.environment, capture_output=True, timeout=60)
    assert (len(done.stdout), done.stderr) == (1, b"")


@pytest.mark.parametrize("command", [["run", MODEL, "hi"], ["models"], ["chat"]])
@TRANSPORTS
def test_without_services_the_error_explains_how_to_start_them(nowhere, command, transport):
    done = tailrace(*command, *transport, environment=nowhere)
    assert done.returncode == 1
    assert "tailrace serve" in done.stderr and "Traceback" not in done.stderr


@TRANSPORTS
def test_full_disk_ends_the_reply_with_one_sentence(stack, transport):
    with open("/dev/full", "w") as full:
        done = tailrace("run", MODEL, "hi", *transport, environment=stack.environment, stdout=full)
    assert (done.returncode, done.stderr) == (1, "Cannot write to standard output: No space left on device.\n")


def test_doctor_finds_healthy_services(stack):
    done = tailrace("doctor", environment=stack.environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert (
        f"the bridge at http://{stack.http_address} is ready" in done.stdout and "the token is accepted" in done.stdout
    )


def test_doctor_names_a_missing_catalog(stack, tmp_path):
    environment = {**stack.environment, "TAILRACE_CATALOG": str(tmp_path / "none.toml")}
    done = tailrace("doctor", environment=environment)
    assert done.returncode == 1
    assert "none.toml" in done.stdout and "WRONG" in done.stdout


def test_token_prints_token_and_line_separately(stack, tmp_path):
    done = tailrace("token", "acme", environment=stack.environment)
    token = re.search(r"tr_[\w-]{43}$", done.stderr, re.MULTILINE)[0]
    assert done.stdout == f"acme {hashlib.sha256(token.encode()).hexdigest()}\n"
    (tmp_path / "tokens").write_text(done.stdout)
    environment = {**stack.environment, "TAILRACE_API_TOKENS_FILE": str(tmp_path / "tokens")}
    assert "1 tokens in" in tailrace("doctor", environment=environment).stdout


def test_token_refuses_an_invalid_account(stack):
    done = tailrace("token", "a b", environment=stack.environment)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (1, "", 1)
