"""The `tailrace` command against the real services, through REST and gRPC, and its messages about errors."""

import hashlib
import re

import pytest

from tests.support.processes import free_address
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
def test_chat_keeps_the_conversation_until_an_empty_line(stack, transport):
    lines = "My name is Ada.\nSay yes.\n\nnever read\n"
    done = tailrace("chat", "--max-tokens", "4", "--seed", "1", *transport, environment=stack.environment, text=lines)
    assert done.returncode == 0
    assert done.stderr.count("completion tokens") == 2


@TRANSPORTS
def test_models_are_listed_with_their_limits(stack, transport):
    done = tailrace("models", *transport, environment=stack.environment)
    assert done.returncode == 0
    assert MODEL in done.stdout and "2048 tokens in" in done.stdout


@pytest.mark.parametrize(
    ("transport", "message"), [([], "No such model @cf/x/y or task"), (["--grpc"], "UNKNOWN_MODEL")]
)
def test_a_refusal_is_one_sentence(stack, transport, message):
    done = tailrace("run", "@cf/x/y", "hi", *transport, environment=stack.environment)
    assert (done.returncode, done.stdout) == (1, "")
    assert message in done.stderr and len(done.stderr.splitlines()) == 1


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
