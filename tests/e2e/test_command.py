"""The `tailrace` command with the real stack, over REST and gRPC, and its error messages."""

import hashlib
import re
import subprocess
import sys

import pytest

from tests.support.processes import ROOT, free_address

MODEL = "@cf/meta/llama-2-7b-chat-int8"
DOORS = [[], ["--grpc"]]


def tailrace(*arguments, environment, text="", seconds=60):
    """Run the command. Returns its exit code, stdout and stderr."""
    command = [sys.executable, "-m", "tailrace_cli", *arguments]
    return subprocess.run(
        command, input=text, capture_output=True, text=True, timeout=seconds, cwd=ROOT, env=environment
    )


@pytest.fixture
def nowhere(stack):
    return {**stack.environment, "TAILRACE_HTTP_ADDRESS": free_address(), "TAILRACE_GRPC_ADDRESS": free_address()}


@pytest.mark.parametrize("door", DOORS, ids=["rest", "grpc"])
def test_run_prints_the_reply(stack, door):
    options = ["--max-tokens", "12", "--temperature", "0", "--stats", *door]
    done = tailrace("run", MODEL, "What is the capital of Japan?", *options, environment=stack.environment)
    assert (done.returncode, "Tokyo" in done.stdout) == (0, True)
    assert "completion tokens · first token after" in done.stderr


def test_run_reads_the_prompt_from_stdin(stack):
    done = tailrace("run", MODEL, "-", "--max-tokens", "3", environment=stack.environment, text="Hello")
    assert done.returncode == 0 and done.stdout.strip()


@pytest.mark.parametrize("door", DOORS, ids=["rest", "grpc"])
def test_chat_keeps_the_conversation_until_an_empty_line(stack, door):
    lines = "My name is Ada.\nSay yes.\n\nnever read\n"
    done = tailrace("chat", "--max-tokens", "4", "--seed", "1", *door, environment=stack.environment, text=lines)
    assert done.returncode == 0
    assert done.stderr.count("completion tokens") == 2


@pytest.mark.parametrize("door", DOORS, ids=["rest", "grpc"])
def test_models_are_listed_with_their_limits(stack, door):
    done = tailrace("models", *door, environment=stack.environment)
    assert done.returncode == 0
    assert MODEL in done.stdout and "2048 tokens in" in done.stdout


@pytest.mark.parametrize(("door", "message"), [([], "No such model @cf/x/y or task"), (["--grpc"], "UNKNOWN_MODEL")])
def test_a_refusal_is_one_sentence(stack, door, message):
    done = tailrace("run", "@cf/x/y", "hi", *door, environment=stack.environment)
    assert (done.returncode, done.stdout) == (1, "")
    assert message in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("command", [["run", MODEL, "hi"], ["models"], ["chat"]])
@pytest.mark.parametrize("door", DOORS, ids=["rest", "grpc"])
def test_the_error_without_a_stack_explains_how_to_start_one(nowhere, command, door):
    done = tailrace(*command, *door, environment=nowhere)
    assert done.returncode == 1
    assert "tailrace serve" in done.stderr and "Traceback" not in done.stderr


def test_an_invalid_address_is_reported(stack):
    done = tailrace("models", "--url", "localhost:8787", environment=stack.environment)
    assert (done.returncode, "no address of a bridge" in done.stderr) == (1, True)


def test_doctor_passes_on_a_healthy_stack(stack):
    done = tailrace("doctor", environment=stack.environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"the bridge at http://{stack.http_address} is ready" in done.stdout and "the token is let in" in done.stdout


def test_doctor_explains_how_to_start_a_stack(nowhere):
    done = tailrace("doctor", environment=nowhere)
    assert done.returncode == 0
    assert "Start one with `tailrace serve`." in done.stdout


def test_doctor_names_a_missing_catalog(stack, tmp_path):
    environment = {**stack.environment, "TAILRACE_CATALOG": str(tmp_path / "none.toml")}
    done = tailrace("doctor", environment=environment)
    assert done.returncode == 1
    assert "none.toml" in done.stdout and "WRONG" in done.stdout


def test_token_prints_the_files_line_apart_from_the_token(stack, tmp_path):
    done = tailrace("token", "acme", environment=stack.environment)
    token = re.search(r"tr_[\w-]{43}$", done.stderr, re.MULTILINE)[0]
    assert done.stdout == f"acme {hashlib.sha256(token.encode()).hexdigest()}\n"
    (tmp_path / "tokens").write_text(done.stdout)
    environment = {**stack.environment, "TAILRACE_API_TOKENS_FILE": str(tmp_path / "tokens")}
    assert "1 tokens in" in tailrace("doctor", environment=environment).stdout


def test_token_refuses_an_invalid_account(stack):
    done = tailrace("token", "a b", environment=stack.environment)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (1, "", 1)
