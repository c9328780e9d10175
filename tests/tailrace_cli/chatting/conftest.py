"""A chat with a client that repeats each prompt, and with an editor whose messages the test gives."""

import io
import sys

import pytest

from tailrace_cli.chatting import session
from tailrace_cli.chatting.session import chat
from tailrace_cli.client import ModelLine, Piece, Request
from tailrace_cli.errors import Failure, Refusal, TooLong


class Echo:
    """A client that records every conversation.

    It refuses the message "no", its connection breaks at "break", Ctrl-C cuts the reply to "cut" and comes before the one
    to "early", and no request may have more than `window` messages.
    """

    def __init__(self, window):
        self.conversations = []
        self.window = window

    def models(self):
        return [ModelLine("@cf/meta/echo", "", 100, 1), ModelLine("@cf/meta/other", "", 100, 1)]

    def stream(self, request, stats):
        if len(request.messages) > self.window:
            raise TooLong("Too long.")
        self.conversations.append(request.messages)
        self.last = request
        if request.continues:
            yield from self._rest(request, stats)
            return
        if request.prompt.split("\n")[-1] == "no":  # files may precede it
            raise Refusal("Refused.")
        if request.prompt == "early":
            raise KeyboardInterrupt
        yield Piece("thought", is_thinking=True)
        yield Piece("re: ")
        if request.prompt == "cut":
            raise KeyboardInterrupt
        if request.prompt == "break":
            raise Failure("The connection broke.")
        yield Piece(request.prompt)
        stats.prompt_tokens, stats.completion_tokens, stats.finish = 40, 2, "length"

    def _rest(self, request, stats):
        """Yield the rest of a reply: " and more", or an error if the question was "refuse the rest"."""
        if "refuse the rest" in request.messages[-2][1]:
            raise Refusal("Refused.")
        yield Piece(" and more")
        stats.prompt_tokens, stats.completion_tokens, stats.finish = 42, 3, "stop"


class Typed:
    """An editor for tests: returns the given messages, and records the drafts. "^C" stands for Ctrl-C."""

    can_edit = True
    reads_keys = False

    def __init__(self, messages):
        self.messages = list(messages)
        self.drafts = []

    def read(self, default=""):
        self.drafts.append(default)
        if not self.messages:
            raise EOFError
        if (message := self.messages.pop(0)) == "^C":
            raise KeyboardInterrupt
        return message


@pytest.fixture
def talk(monkeypatch, capsys):
    """Returns a function from lines of piped input to exit code, conversations and output."""

    def run(*lines, model="", window=99):
        monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines) + "\n"))
        client = Echo(window)
        code = chat(client, Request(model=model, prompt=""))
        return code, client.conversations, capsys.readouterr()

    return run


@pytest.fixture
def type_in(monkeypatch, capsys):
    """Returns a function from messages typed in a terminal to exit code, client, drafts and output."""

    def run(*messages, window=99):
        client, editor = Echo(window), Typed(messages)
        monkeypatch.setattr(session, "make_editor", lambda complete, keeps_history: editor)
        monkeypatch.setattr(session, "is_terminal", lambda stream: stream is sys.stdin)
        code = chat(client, Request(model="", prompt=""))
        return code, client, editor.drafts, capsys.readouterr()

    return run
