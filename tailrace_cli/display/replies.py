"""Shows replies while they are generated. Contains the commands `tailrace run` and `tailrace models`."""

import sys
import threading
import time

from tailrace_cli.client import Client, Piece, ReplyStats, Request
from tailrace_cli.display.markdown import MarkdownStyler
from tailrace_cli.output import dim, has_colours, is_terminal, note, without_controls, write

# Seconds without a piece of text after which a terminal shows that the command still waits.
_PATIENCE_SECONDS = 2.0
# The limit in the sentence about a reply that the user's own setting cut.
CHOSEN_LIMIT = "max_tokens"
_CLEAR_LINE = "\r\033[K"
_DIM, _RESET = "\033[2m", "\033[0m"


def run(client: Client, request: Request, *, shows_stats: bool, is_plain: bool = False) -> None:
    """Print one reply while it is generated; with `shows_stats`, its token counts and times on stderr.

    A terminal also shows a note if the reply was cut. `is_plain`: without styles.
    """
    stats = ReplyStats()
    print_reply(client, request, stats, [], is_plain=is_plain)
    if shows_stats:
        note(str(stats))
    if (cut := why_cut(stats, request)) and is_terminal(sys.stderr):
        note(f"({cut})")


def models(client: Client) -> None:
    """Print every model with its description and its limits in tokens."""
    for model in client.models():
        write(model.name)
        if model.description:
            write(f"    {model.description}")
        output = f"{model.dimensions} numbers" if model.dimensions else f"{model.sequence_length}"
        write(f"    {model.context_length} tokens in, {output} out")


def why_cut(stats: ReplyStats, request: Request) -> str:
    """Return a sentence about the limit that cut the reply; empty if the model ended it."""
    if stats.finish == "length":
        is_chosen = request.sampling.get("max_tokens") == stats.completion_tokens
        limit = CHOSEN_LIMIT if is_chosen else "the model's longest reply, or the end of its context"
        return f"The reply was cut after {stats.completion_tokens} tokens ({limit})."
    return "The reply was cut: its time limit expired." if stats.finish == "time_limit" else ""


def print_reply(
    client: Client, request: Request, stats: ReplyStats, pieces: list[str], *, is_plain: bool = False, earlier: str = ""
) -> None:
    """Print a reply while it is generated.

    Args:
        client: Sends the request to the server.
        request: The request.
        stats: Receives the token counts, the times and the finish reason.
        pieces: Receives the answer's text, even if an error or Ctrl-C ends the reply early.
        is_plain: True for a terminal too: the text without styles.
        earlier: The beginning of the answer, which is on the screen already. It determines the styles of the rest.
    """
    screen = _Screen(is_plain=is_plain, earlier=earlier)
    stream = client.stream(request, stats)
    waiting = _Waiting()
    try:
        for piece in stream:
            waiting.end()
            stats.last = time.monotonic()
            stats.first = stats.first or stats.last
            if not piece.is_thinking:
                pieces.append(piece.text)
            screen.show(piece)
    finally:
        waiting.end()
        # After Ctrl-C or a failed write no more text is read. Closing the stream frees the server's slot immediately.
        close = getattr(stream, "close", None)
        if close is not None:
            close()
        screen.end()


class _Screen:
    """Writes the pieces of one reply: unchanged to a file or a program, styled to a terminal.

    Only a terminal shows the model's thoughts: dim and before the answer.
    """

    def __init__(self, *, is_plain: bool, earlier: str) -> None:
        self._is_terminal = is_terminal(sys.stdout)
        self._has_colours = self._is_terminal and has_colours(sys.stdout)
        self._styler = MarkdownStyler() if self._has_colours and not is_plain else None
        if self._styler is not None:
            self._styler.feed(without_controls(earlier))
        self._is_thinking = False
        self._column_text = ""  # the text that was written last

    def show(self, piece: Piece) -> None:
        """Write one piece."""
        if not self._is_terminal:
            self._put("" if piece.is_thinking else piece.text)
            return
        if piece.is_thinking != self._is_thinking:
            self._switch(is_thinking=piece.is_thinking)
        text = without_controls(piece.text)
        if self._styler is not None and not piece.is_thinking:
            text = self._styler.feed(text)
        self._put(text)

    def end(self) -> None:
        """Write the rest of the reply and end its line."""
        rest = self._styler.finish() if self._styler is not None else ""
        if self._is_thinking:
            rest += self._style(_RESET)
        if self._column_text or rest:
            self._put(f"{rest}\n")

    def _switch(self, *, is_thinking: bool) -> None:
        self._is_thinking = is_thinking
        if is_thinking:
            self._put(f"{self._style(_DIM)}[thinking]\n")
        else:
            line_end = "" if self._column_text.endswith("\n") else "\n"
            self._put(f"{line_end}[end of the thoughts]{self._style(_RESET)}\n\n")

    def _style(self, sequence: str) -> str:
        return sequence if self._has_colours else ""

    def _put(self, text: str) -> None:
        if text:
            write(text, end="")
            self._column_text = text


class _Waiting:
    """Shows in a terminal how long the command has waited for the first piece of a reply."""

    def __init__(self) -> None:
        self._arrived = threading.Event()
        self._thread: threading.Thread | None = None
        if is_terminal(sys.stdout) and is_terminal(sys.stderr) and has_colours(sys.stderr):
            self._thread = threading.Thread(target=self._show, name="waiting", daemon=True)
            self._thread.start()

    def end(self) -> None:
        """End the display and remove its line. Later calls do nothing."""
        if self._thread is not None:
            self._arrived.set()
            self._thread.join()
            self._thread = None

    def _show(self) -> None:
        started, pause = time.monotonic(), _PATIENCE_SECONDS
        while not self._arrived.wait(pause):
            pause = 1.0
            text = f"waiting for the reply … {time.monotonic() - started:.0f} s (Ctrl-C stops)"
            print(f"{_CLEAR_LINE}{dim(text)}", end="", file=sys.stderr, flush=True)
        if pause != _PATIENCE_SECONDS:
            print(_CLEAR_LINE, end="", file=sys.stderr, flush=True)
