"""Colours, and the output of replies to files and terminals."""

import io
import sys

import pytest

from tailrace_cli import output
from tailrace_cli.client import Piece, ReplyStats, Request
from tailrace_cli.display.replies import print_reply

REQUEST = Request(model="m", prompt="p")


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Fixed:
    def __init__(self, *pieces):
        self.pieces = pieces

    def stream(self, request, stats):
        yield from self.pieces


@pytest.mark.parametrize(
    ("variables", "is_terminal", "expected"),
    [
        ({}, True, True),
        ({}, False, False),
        ({"NO_COLOR": "1"}, True, False),
        ({"NO_COLOR": ""}, True, True),
        ({"FORCE_COLOR": "1"}, False, True),
        ({"FORCE_COLOR": "0"}, True, False),
        ({"NO_COLOR": "1", "FORCE_COLOR": "1"}, True, False),
        ({"TERM": "dumb"}, True, False),
    ],
)
def test_colours_follow_the_variables(monkeypatch, variables, is_terminal, expected):
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert output.has_colours(Terminal() if is_terminal else io.StringIO()) is expected


def shown(monkeypatch, stream, *pieces, is_plain=False):
    monkeypatch.setattr(sys, "stdout", stream)
    texts = []
    print_reply(Fixed(*pieces), REQUEST, ReplyStats(), texts, is_plain=is_plain)
    return stream.getvalue(), "".join(texts)


PIECES = (Piece("hm", is_thinking=True), Piece("**a**\x1b[31m"))


def test_a_file_receives_the_answer_as_it_is(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert shown(monkeypatch, io.StringIO(), *PIECES) == ("**a**\x1b[31m\n", "**a**\x1b[31m")


def test_a_terminal_receives_dim_thoughts_and_a_styled_answer_without_control_characters(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    text, answer = shown(monkeypatch, Terminal(), *PIECES)
    assert text == "\033[2m[thinking]\nhm\n[end of the thoughts]\033[0m\n\n\033[1ma\033[0m[31m\n"
    assert answer == "**a**\x1b[31m"


@pytest.mark.parametrize("is_plain", [True, False])
def test_plain_text_has_no_styles(monkeypatch, is_plain):
    if not is_plain:
        monkeypatch.setenv("NO_COLOR", "1")
    assert shown(monkeypatch, Terminal(), PIECES[1], is_plain=is_plain)[0] == "**a**[31m\n"


def test_a_sentence_of_a_server_cannot_control_the_terminal(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    output.tell("There is no model \033]0;title\a\r\033[2J.")
    assert sys.stderr.getvalue() == "There is no model ]0;title[2J.\n"
