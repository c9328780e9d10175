"""The command chat: a conversation in a terminal, or one question per line of the input."""

import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

from tailrace_cli.chatting import commands
from tailrace_cli.chatting.attachments import TextFile, with_files
from tailrace_cli.chatting.conversation import Conversation
from tailrace_cli.chatting.editor import Editor, make_editor
from tailrace_cli.chatting.keyboard import has_waiting_keys, hidden_typing, kept_keys
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
    with kept_keys() if editor.reads_keys else nullcontext():
        return _Session(state, editor, is_plain=is_plain).run()


@dataclass
class _Reply:
    """A reply of one chat.

    Attributes:
        stats: Its token counts and times.
        pieces: The pieces of its answer.
        num_dropped: Number of messages that were removed from the conversation for it.
    """

    stats: ReplyStats = field(default_factory=ReplyStats)
    pieces: list[str] = field(default_factory=list)
    num_dropped: int = 0

    @property
    def text(self) -> str:
        """The answer."""
        return "".join(self.pieces)


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
        state = self._state
        replaces_last, state.replaces_last = state.replaces_last, False
        if not commands.is_command(message):
            files = (*(state.edited_files if replaces_last else ()), *state.files)
            # A file that was attached again has its newest text.
            once = {each.path: each for each in files}
            self._answer(message, tuple(once.values()), replaces_last=replaces_last)
            return
        try:
            commands.obey(message, state)
        except OutputFailure:
            raise
        except (Failure, Refusal) as error:
            self._report(error)
        if state.next_question:
            question, state.next_question = state.next_question, ""
            self._regenerate(question)
        if state.continues:
            state.continues = False
            self._continue()

    def _report(self, error: Exception) -> None:
        tell(str(error))
        if not self._is_terminal:
            self._code = 1

    def _answer(self, question: str, files: tuple[TextFile, ...], *, replaces_last: bool) -> None:
        """Print the reply to a question, and add both to the conversation.

        The conversation does not change if the reply fails, or if Ctrl-C stops it before its first text. Question and
        files then belong to the next message.

        Args:
            question: The message.
            files: The files that are attached to it.
            replaces_last: Whether the question replaces the newest one.
        """
        state, prompt = self._state, with_files(files, question)
        if self._ask(prompt, replaces_last=replaces_last):
            state.asked, state.files = (question, files), ()
            return
        state.files, state.edited_files = files, ()
        self._return(question, replaces_last=replaces_last)

    def _regenerate(self, prompt: str) -> None:
        """Replace the newest question and its answer by the same question and another answer."""
        if not self._ask(prompt, replaces_last=True):
            self._return(prompt, replaces_last=True)

    def _ask(self, prompt: str, *, replaces_last: bool) -> bool:
        """Print a reply and add it to the conversation. Returns False if there is none: nothing changes then."""
        conversation, kept = self._state.conversation, list(self._state.conversation.turns)
        if replaces_last:
            conversation.drop_newest()
        reply = self._reply(lambda: conversation.request(prompt))
        if reply is None:
            conversation.turns = kept
            return False
        conversation.add(prompt, reply.text)
        self._comment(reply)
        return True

    def _continue(self) -> None:
        """Print the rest of the newest answer, and append it there. Nothing changes if there is none."""
        conversation, kept = self._state.conversation, list(self._state.conversation.turns)
        reply = self._reply(conversation.continuation, num_kept=2, earlier=conversation.last_reply)
        if reply is None:
            conversation.turns = kept
            return
        conversation.extend(reply.text)
        self._comment(reply)

    def _return(self, question: str, *, replaces_last: bool) -> None:
        """Put a question without an answer back into the editor. It still replaces the newest one if `replaces_last`.

        A long one is in the history only, and so is one after which more was typed, which would otherwise be joined to it.
        """
        if len(question) <= _MAX_DRAFT and not has_waiting_keys():
            self._state.draft, self._state.replaces_last = question, replaces_last
        elif self._editor.can_edit:
            note("(Arrow up brings the question back.)")
        if self._state.files:
            note(f"(Still attached: {', '.join(map(str, self._state.files))}. /file off removes it.)")

    def _reply(self, request: Callable[[], Request], *, num_kept: int = 0, earlier: str = "") -> "_Reply | None":
        """Print a reply. Returns None if it failed, or if Ctrl-C stopped it before its first text.

        Args:
            request: Returns the request for the conversation at that time.
            num_kept: Number of newest messages that are kept even if the conversation is too long.
            earlier: The beginning of the answer that the reply continues.
        """
        reply = _Reply()
        try:
            with hidden_typing():
                self._print(request, reply, num_kept=num_kept, earlier=earlier)
        except OutputFailure:
            raise
        except (Failure, Refusal) as error:
            self._report(error)
            return None
        except KeyboardInterrupt:
            if not self._is_terminal:
                raise
            self._was_interrupted = True
            kept = "(Stopped. The conversation keeps the text so far.)"
            note(kept if reply.pieces else "(Stopped before the reply began.)")
            if not reply.pieces:
                return None
        return reply

    def _print(self, request: Callable[[], Request], reply: "_Reply", *, num_kept: int, earlier: str) -> None:
        """Print the reply. While the conversation exceeds the model's window, remove its oldest messages.

        Raises:
            TooLong: The messages that are not removed exceed the window.
        """
        state = self._state
        while True:
            try:
                print_reply(
                    state.client, request(), reply.stats, reply.pieces, is_plain=self._is_plain, earlier=earlier
                )
                return
            except TooLong:
                if not state.conversation.drop_oldest(num_kept=num_kept):
                    raise
                reply.num_dropped += 2

    def _comment(self, reply: "_Reply") -> None:
        """Write the notes after a reply: token counts, remaining context, and whether text or messages were cut."""
        state, stats = self._state, reply.stats
        state.last_stats = stats
        state.total_tokens += stats.completion_tokens
        if reply.num_dropped:
            note(
                f"(The oldest {reply.num_dropped} messages no longer fit into the model's context, and are forgotten.)"
            )
        if stats.completion_tokens:
            note(" · ".join([str(stats), *self._room(stats)]))
        if cut := why_cut(stats, state.conversation.request("")):
            steps = ["/continue continues it"] if reply.pieces and state.conversation.schema is None else []
            steps += ["/set max_tokens changes the limit"] if CHOSEN_LIMIT in cut else []
            note(f"({cut} {', and '.join(steps)}.)" if steps else f"({cut})")

    def _room(self, stats: ReplyStats) -> Sequence[str]:
        """Return a line with the number of context tokens left for the next question and reply; empty if unknown."""
        model: ModelLine | None = next(
            (each for each in self._state.models if each.name == self._state.conversation.model), None
        )
        if model is None or not model.context_length:
            return ()
        left = max(0, model.context_length - stats.prompt_tokens - stats.completion_tokens)
        return (f"{left} of {model.context_length} tokens of context left",)
