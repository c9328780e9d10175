"""`tailrace chat` with a client that repeats each prompt."""

import io

import pytest

from tailrace_cli import output
from tailrace_cli.chat import chat
from tailrace_cli.client import ModelLine, Request
from tailrace_cli.errors import Refusal


class Echo:
    """A client that records every conversation. It refuses the message "no", and Ctrl-C cuts the reply to "cut"."""

    def __init__(self):
        self.conversations = []

    def models(self):
        return [ModelLine("@cf/meta/echo", "", 1, 1)]

    def stream(self, request, stats):
        self.conversations.append(request.messages)
        if request.prompt == "no":
            raise Refusal("Refused.")
        yield "re: "
        if request.prompt == "cut":
            raise KeyboardInterrupt
        yield request.prompt


@pytest.fixture
def talk(monkeypatch, capsys):
    """Returns a function from lines of input to exit code, conversations and output."""

    def run(*lines, model=""):
        monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines) + "\n"))
        client = Echo()
        code = chat(client, Request(model=model, prompt=""))
        return code, client.conversations, capsys.readouterr()

    return run


def test_each_message_follows_the_earlier_ones(talk):
    code, (_, second), shown = talk("one", "two", "", "never read")
    assert second == [("user", "one"), ("assistant", "re: one"), ("user", "two")]
    assert (code, shown.out) == (0, "re: one\nre: two\n")


def test_clear_forgets_the_conversation_and_bye_ends_it(talk):
    _, conversations, _ = talk("one", "/clear", "two", "/bye", "three")
    assert conversations == [[("user", "one")], [("user", "two")]]


def test_quotation_marks_enclose_several_lines(talk):
    _, (first,), _ = talk('"""one', "", 'two"""')
    assert first == [("user", "one\n\ntwo")]


def test_a_refused_line_of_a_script_sets_the_exit_code_and_leaves_the_conversation(talk):
    code, (_, second), shown = talk("no", "two")
    assert (code, second) == (1, [("user", "two")])
    assert "Refused." in shown.err


def test_a_reply_that_was_cut_is_left_out(talk):
    code, (_, second), _ = talk("cut", "two")
    assert (code, second) == (0, [("user", "two")])


def test_a_short_name_is_enough(talk):
    assert "Talking to @cf/meta/echo." in talk("", model="echo")[2].err


def test_no_color_is_respected(monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert output.dim("x") == "\033[2mx\033[0m"
    monkeypatch.setenv("NO_COLOR", "1")
    assert output.dim("x") == "x"
