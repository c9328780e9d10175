"""`tailrace chat` in a pseudo-terminal, with the real services: typing, history, Ctrl-C, paste, resize."""

import json
import stat

import pytest

from tests.tailrace_cli.terminal import ALT_ENTER, CTRL_C, CTRL_D, UP, Terminal, pasted

pytest.importorskip("prompt_toolkit")

PROMPT = r">\s+$"
LONG = "Write a very long story."


@pytest.fixture
def chat(stack, tmp_path):
    """Returns a function that starts a chat with short replies."""

    def start(*options, **variables):
        environment = {**stack.environment, "XDG_STATE_HOME": str(tmp_path), **variables}
        return Terminal("chat", "--temperature", "0", *options, environment=environment)

    return start


def test_a_question_is_typed_edited_answered_and_kept(chat, tmp_path):
    with chat("--max-tokens", "8") as first:
        first.until(PROMPT)
        first.send("What is the capital of Japn?\x1b[D\x1b[Da\r")
        first.until("Tokyo")
        first.until(r"tokens of context left\s")
        first.until(PROMPT)
        first.send(CTRL_D)
        assert first.exit_code() == 0
    history = tmp_path / "tailrace" / "chat-history"
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    with chat("--max-tokens", "3") as second:
        second.until(PROMPT)
        second.send(UP)
        second.until(r"What\s+is\s+the\s+capital\s+of\s+Japan")
        second.send(CTRL_C + "/he\t")
        second.until("elp")
        second.send("\r")
        second.until("/regenerate")
        second.until(PROMPT)
        second.send("/bye\r")
        assert second.exit_code() == 0


def test_ctrl_c_stops_the_reply_and_twice_ends_the_chat(chat, stack):
    before = len(stack.settled_runs())
    with chat() as terminal:
        terminal.until(PROMPT)
        terminal.send(f"{LONG}\r")
        terminal.until(r"story\.\s+\S[^>]{8}")
        terminal.send(CTRL_C)
        terminal.until("The conversation keeps the text so far")
        terminal.until(PROMPT)
        terminal.send(CTRL_C)
        assert terminal.exit_code() == 130
    runs = stack.wait_for_runs(before + 1, timeout_seconds=20)
    assert runs[before].outcome == "cancelled"


def test_pasted_and_typed_lines_are_one_message_after_a_resize(chat, tmp_path):
    path = tmp_path / "chat.json"
    with chat("--max-tokens", "2") as terminal:
        terminal.until(PROMPT)
        terminal.send(pasted("a\n  b\n") + "c")
        terminal.resize(10, 30)
        terminal.send(f"{ALT_ENTER}d\r")
        terminal.until("context")
        terminal.until(PROMPT)
        terminal.send('"""e\rf"""\r')
        terminal.until("context")
        terminal.until(PROMPT)
        terminal.send(f"/save {path}\r")
        terminal.until("Saved 4")
    turns = json.loads(path.read_text())["turns"]
    assert [turn["content"] for turn in turns[::2]] == ["a\n  b\nc\nd", "e\nf"]


def test_a_simple_terminal_gets_no_escape_sequences(chat):
    with chat("--max-tokens", "8", "--no-history", TERM="dumb") as terminal:
        terminal.until(PROMPT)
        terminal.send("What is the capital of Japan?\r")
        terminal.until("Tokyo")
        terminal.until(PROMPT)
        assert "\x1b" not in terminal.raw
        terminal.send(CTRL_D)
        assert terminal.exit_code() == 0
