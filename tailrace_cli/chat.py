"""The command chat: a conversation in a terminal, or one question per line of the input."""

import contextlib
import sys
from dataclasses import replace

from tailrace_cli.client import Client, ReplyStats, Request, full_name, print_reply
from tailrace_cli.errors import Refusal
from tailrace_cli.output import dim, write

_QUOTES = '"""'
_HELP = f"""/clear   forget the conversation
/bye     end
{_QUOTES}      begin and end a message of several lines"""
_ENDS = ("/bye", "/exit", "/quit")


def chat(client: Client, request: Request) -> int:
    """Run a conversation until an empty line, /bye or the end of the input.

    A refused message is reported on stderr, and the conversation continues without it.

    Args:
        client: Connection to the models.
        request: Model and options for every message; its prompt and turns are not used. The model may be a short name;
            empty selects the server's first model that generates text.

    Returns:
        The exit code: 1 if a message was refused and the input is not a terminal, else 0.
    """
    is_terminal = sys.stdin.isatty()
    if is_terminal:
        with contextlib.suppress(ImportError):  # not on every system; its import adds history and editing to `input`
            import readline  # noqa: F401
    model = full_name(client, request.model)
    print(dim(f"Talking to {model}. An empty line ends, Ctrl-C cuts a reply short, /help lists more."), file=sys.stderr)
    turns: list[tuple[str, str]] = []
    code = 0
    while (prompt := _read_message()) and prompt not in _ENDS:
        if prompt == "/help":
            print(_HELP, file=sys.stderr)
        elif prompt == "/clear":
            turns.clear()
        else:
            text = _answer(client, replace(request, model=model, prompt=prompt, turns=tuple(turns)))
            if text:
                turns += [("user", prompt), ("assistant", text)]
            if text is None and not is_terminal:
                code = 1
    return code


def _answer(client: Client, request: Request) -> str | None:
    """Print a reply and return its text: empty if Ctrl-C cut it short, None if the message was refused."""
    stats = ReplyStats()
    try:
        text = print_reply(client, request, stats)
    except Refusal as error:
        print(error, file=sys.stderr)
        return None
    except KeyboardInterrupt:
        write()
        return ""
    print(dim(str(stats)), file=sys.stderr)
    return text


def _read_message() -> str:
    """Return the next message; empty at the end of the input.

    A message of several lines begins and ends with three quotation marks.
    """
    line = _read_line("> ")
    if not line.startswith(_QUOTES):
        return line
    text = line.removeprefix(_QUOTES)
    while not text.endswith(_QUOTES):
        try:
            text = f"{text}\n{_input('. ')}"
        except EOFError:
            break
    return text.removesuffix(_QUOTES).strip()


def _read_line(mark: str) -> str:
    try:
        return _input(mark).strip()
    except EOFError:
        return ""


def _input(mark: str) -> str:
    return input(mark if sys.stdin.isatty() else "")
