"""`tailrace chat` in a pseudo-terminal, with a bridge whose replies the test writes: keys that are typed during a reply."""

import os
import pty
import termios

import pytest

from tailrace_cli.chatting.keyboard import kept_keys
from tests.tailrace_cli.bridge import scripted_bridge
from tests.tailrace_cli.terminal import CTRL_D, Terminal

pytest.importorskip("prompt_toolkit")

PROMPT = r">\s+$"
EDITORS = pytest.mark.parametrize("kind", ["xterm-256color", "dumb"], ids=["prompt_toolkit", "readline"])


@pytest.fixture
def bridge():
    with scripted_bridge() as bridge:
        yield bridge


@pytest.fixture
def chat(bridge, environment):
    """Returns a function that starts a chat in a terminal of a kind."""
    variables = {name: value for name, value in environment.items() if name != "TAILRACE_HTTP_ADDRESS"}

    def start(kind="xterm-256color"):
        own = {**variables, "TAILRACE_CHAT_HISTORY": "off", "TERM": kind}
        return Terminal("chat", "--url", bridge.url, environment=own)

    return start


@EDITORS
def test_ctrl_d_during_a_reply_ends_the_chat_after_it(chat, bridge, kind):
    with chat(kind) as terminal:
        terminal.until(PROMPT)
        terminal.send("one\r")
        bridge.request()
        terminal.send(CTRL_D)
        bridge.reply("uno")
        terminal.until("uno")
        assert terminal.exit_code() == 0


@EDITORS
def test_ctrl_d_that_follows_a_question_at_once_ends_the_chat_after_the_reply(chat, bridge, kind):
    with chat(kind) as terminal:
        terminal.until(PROMPT)
        terminal.send(f"one\r{CTRL_D}")
        bridge.request()
        bridge.reply("uno")
        terminal.until("uno")
        assert terminal.exit_code() == 0


@EDITORS
def test_a_question_that_is_typed_during_a_reply_is_asked_after_it(chat, bridge, kind):
    with chat(kind) as terminal:
        terminal.until(PROMPT)
        terminal.send("one\r")
        bridge.request()
        terminal.send("two\r")
        bridge.reply("uno")
        asked = bridge.request()["messages"]
        assert [message["content"] for message in asked] == ["one", "uno", "two"]
        bridge.reply("dos")
        terminal.until("dos")
        terminal.until(PROMPT)
        terminal.send(CTRL_D)
        assert terminal.exit_code() == 0


def test_a_refused_question_is_not_joined_to_the_one_that_was_typed_meanwhile(chat, bridge):
    with chat() as terminal:
        terminal.until(PROMPT)
        terminal.send("one\r")
        bridge.request()
        terminal.send("two\r")
        bridge.refuse("Refused.")
        terminal.until("Refused")
        terminal.until("Arrow up brings the question back")
        assert [message["content"] for message in bridge.request()["messages"]] == ["two"]
        bridge.reply("dos")
        terminal.until("dos")


def test_the_terminal_is_not_asked_for_the_position_of_its_cursor(chat):
    """prompt_toolkit warns about terminals that do not answer within two seconds. Not every terminal does."""
    with chat() as terminal:
        terminal.until(PROMPT)
        terminal.send("/help\r")
        terminal.until("/bye")
        terminal.until(PROMPT)
        terminal.send(CTRL_D)
        assert terminal.exit_code() == 0
        assert "\x1b[6n" not in terminal.raw and "WARNING" not in terminal.text


def test_the_terminal_is_as_before_after_the_end(monkeypatch):
    """Within the block no mode is left that would change a key, and Ctrl-C still interrupts."""
    near, far = pty.openpty()
    with os.fdopen(near, "rb", buffering=0), os.fdopen(far) as terminal:
        monkeypatch.setattr("sys.stdin", terminal)
        before = termios.tcgetattr(terminal)
        with kept_keys():
            during = termios.tcgetattr(terminal)
        assert termios.tcgetattr(terminal) == before != during
    assert during[0] & termios.ICRNL == during[3] & termios.ICANON == 0
    assert during[3] & termios.ISIG and during[1] == before[1]
