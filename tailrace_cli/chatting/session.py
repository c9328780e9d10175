"""The command chat: a conversation in a terminal, or one question per line of the input."""

import sys
from collections.abc import Sequence

from tailrace_cli.chatting import commands
from tailrace_cli.chatting.conversation import Conversation
from tailrace_cli.chatting.editor import Editor, make_editor
from tailrace_cli.chatting.keyboard import hidden_typing
from tailrace_cli.client import Client, ModelLine, ReplyStats, Request, served_name
from tailrace_cli.display.replies import CHOSEN_LIMIT, print_reply, why_cut
from tailrace_cli.errors import Failure, OutputFailure, Refusal, TooLong
from tailrace_cli.output import is_terminal, note, tell

EXIT_INTERRUPTED = 130
# Longest question that returns to the editor, in characters. A longer one would push its error out of the window.
_MAX_DRAFT = 500
_WELCOME = "Ctrl-C stops a reply, Ctrl-D ends, /help lists the commands."


def chat(client: Client, request: Request, *, is_plain: bool = False, keeps_history: bool = True) -> int:
    """Run a conversation until /bye or the end of the input.

    A refused message is reported on stderr. The conversation continues without it.

    Args:
        client: Sends requests to the server and lists its models.
        request: Model and options of every message; its prompt and turns are not used. The model may be a short name;
            empty selects the server's first model that generates text.
        is_plain: Whether a terminal also gets text without styles.
        keeps_history: Whether a terminal's questions are kept for later chats.

    Returns:
        The exit code: 0, or 130 after Ctrl-C, or 1 if a message or a command failed and the input is not a terminal.
    """
    models = client.models()
    name = request.model if "/" in request.model else served_name(models, request.model)
    conversation = Conversation(
        name, request.system, dict(request.sampling), request.stop, request.schema, list(request.turns)
    )
    state = commands.State(client, conversation, models, can_edit=False)
    editor = make_editor(lambda line: commands.completions(line, state), keeps_history=keeps_history)
    state.can_edit = editor.can_edit
    note(f"Talking to {name}. {_WELCOME}")
    return _Session(state, editor, is_plain=is_plain).run()


class _Session:
    """The loop of one chat."""

    def __init__(self, state: commands.State, editor: Editor, *, is_plain: bool) -> None:
        self._state = state
        self._editor = editor
        self._is_plain = is_plain
        self._is_terminal = is_terminal(sys.stdin)
        self._was_interrupted = False  # whether Ctrl-C was the last event
        self._code = 0

    def run(self) -> int:
        """Read and answer messages until the end. Returns the exit code."""
        while not self._state.is_ended:
            draft, self._state.draft = self._state.draft, ""
            try:
                message = self._editor.read(draft)
            except EOFError:
                if self._is_terminal:
                    tell("")
                break
            except KeyboardInterrupt:
                if self._was_interrupted or not self._is_terminal:
                    tell("")
                    return EXIT_INTERRUPTED
                self._was_interrupted, self._state.replaces_last = True, False
                note("(Ctrl-C again or Ctrl-D ends the chat.)")
                continue
            if message:
                self._was_interrupted = False
                self._handle(message)
        return self._code

    def _handle(self, message: str) -> None:
        """Run a command, or answer a question."""
        replaces_last, self._state.replaces_last = self._state.replaces_last, False
        if not commands.is_command(message):
            self._answer(message, replaces_last=replaces_last)
            return
        try:
            commands.obey(message, self._state)
        except OutputFailure:
            raise
        except (Failure, Refusal) as error:
            self._report(error)
        if self._state.next_question:
            question, self._state.next_question = self._state.next_question, ""
            self._answer(question, replaces_last=True)

    def _report(self, error: Exception) -> None:
        tell(str(error))
        if not self._is_terminal:
            self._code = 1

    def _answer(self, question: str, *, replaces_last: bool) -> None:
        """Print the reply to a question, and add both to the conversation.

        The conversation does not change if the reply fails, or if Ctrl-C stops it before its first text.

        Args:
            question: The message.
            replaces_last: Whether the question replaces the newest one.
        """
        conversation, stats, pieces = self._state.conversation, ReplyStats(), list[str]()
        kept = list(conversation.turns)
        if replaces_last:
            conversation.drop_newest()
        try:
            with hidden_typing():
                num_dropped = self._ask(question, stats, pieces)
        except OutputFailure:
            raise
        except (Failure, Refusal) as error:
            self._report(error)
            conversation.turns = kept
            self._return(question)
            return
        except KeyboardInterrupt:
            if not self._is_terminal:
                raise
            self._was_interrupted, num_dropped = True, 0
            note(
                "(Stopped. The conversation keeps the text so far.)" if pieces else "(Stopped before the reply began.)"
            )
            if not pieces:
                conversation.turns = kept
                self._return(question)
                return
        conversation.add(question, "".join(pieces))
        self._state.last_stats = stats
        self._state.total_tokens += stats.completion_tokens
        self._comment(stats, num_dropped)

    def _return(self, question: str) -> None:
        """Put a question without an answer back into the editor. A long one is in the history only."""
        if len(question) <= _MAX_DRAFT:
            self._state.draft = question
        elif self._editor.can_edit:
            note("(Arrow up brings the question back.)")

    def _ask(self, question: str, stats: ReplyStats, pieces: list[str]) -> int:
        """Print the reply. While the conversation exceeds the model's window, remove its oldest messages.

        Returns:
            The number of removed messages.

        Raises:
            TooLong: The question alone exceeds the window.
        """
        num_dropped = 0
        conversation = self._state.conversation
        while True:
            try:
                print_reply(self._state.client, conversation.request(question), stats, pieces, is_plain=self._is_plain)
                return num_dropped
            except TooLong:
                if not conversation.drop_oldest():
                    raise
                num_dropped += 2

    def _comment(self, stats: ReplyStats, num_dropped: int) -> None:
        """Write the notes after a reply: token counts, remaining context, and whether text or messages were cut."""
        if num_dropped:
            note(f"(The oldest {num_dropped} messages no longer fit into the model's context, and are forgotten.)")
        if stats.completion_tokens:
            note(" · ".join([str(stats), *self._room(stats)]))
        if cut := why_cut(stats, self._state.conversation.request("")):
            note(f"({cut} /set max_tokens changes the limit.)" if CHOSEN_LIMIT in cut else f"({cut})")

    def _room(self, stats: ReplyStats) -> Sequence[str]:
        """Return a line about the tokens of the model's context that the next question may use; empty if unknown."""
        model: ModelLine | None = next(
            (each for each in self._state.models if each.name == self._state.conversation.model), None
        )
        if model is None or not model.context_length:
            return ()
        left = max(0, model.context_length - stats.prompt_tokens - stats.completion_tokens)
        return (f"{left} of {model.context_length} tokens of context left",)
