"""The /commands of a chat."""

import base64
import difflib
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tailrace_cli.chatting.attachments import TextFile, read_file, with_files
from tailrace_cli.chatting.conversation import Conversation, load, save
from tailrace_cli.chatting.paths import completed_paths, named_path
from tailrace_cli.client import Client, ModelLine, ReplyStats, served_name
from tailrace_cli.errors import Failure, Refusal
from tailrace_cli.output import note, tell
from tailrace_cli.prompt import schema_text
from tailrace_cli.sampling import parse_value
from tailrace_shared.request_fields import SAMPLING_FIELDS

_NAME = re.compile(r"/[a-z?]+")
_PARAMETERS = [each.name for each in SAMPLING_FIELDS]
_UNSET = ("off", "default", "none")
_MAX_SHOWN = 70
# Reasons for the end of a reply that can be continued; empty: Ctrl-C stopped it.
_CUT = ("length", "time_limit", "")
_KEYS = {
    '"""': "begin and end a message of several lines",
    "Alt+Enter": "begin a new line of the message",
    "Ctrl-C": "stop a reply and keep its text; twice: end the chat",
    "Ctrl-D": "end the chat",
}


@dataclass
class State:
    """The state of a chat, which its commands read and change.

    Attributes:
        client: Sends requests to the server and lists its models.
        conversation: The conversation.
        models: The served models, in the order of the catalog.
        can_edit: Whether the editor accepts a text to edit.
        files: Files that are attached to the next question.
        asked: The newest question as it was typed, and its files; None if it was loaded or there is none.
        last_stats: Token counts and times of the newest reply; None before the first, and after /clear and /load.
        next_question: A question to ask next, for /regenerate; empty: none.
        continues: Whether the newest reply is continued next, for /continue.
        draft: A text to edit next; empty: none.
        replaces_last: Whether the next question replaces the newest one, for /edit.
        edited_files: Files of the newest question, which the question that replaces it has too.
        total_tokens: Generated tokens of all replies.
        is_ended: Whether the chat ends.
    """

    client: Client
    conversation: Conversation
    models: Sequence[ModelLine]
    can_edit: bool
    files: tuple[TextFile, ...] = ()
    asked: tuple[str, tuple[TextFile, ...]] | None = None
    last_stats: ReplyStats | None = None
    next_question: str = ""
    continues: bool = False
    draft: str = ""
    replaces_last: bool = False
    edited_files: tuple[TextFile, ...] = ()
    total_tokens: int = 0
    is_ended: bool = False


def is_command(message: str) -> bool:
    """Return True if a message is a command: its first word is a slash and letters, unlike a path such as /etc/hosts."""
    words = message.split(maxsplit=1)
    return bool(words) and _NAME.fullmatch(words[0]) is not None


def obey(message: str, state: State) -> None:
    """Run a command.

    Raises:
        Failure: The command is unknown or not possible. The conversation has not changed then.
        Refusal: The server refused the list of its models.
    """
    name, _, argument = message.partition(" ")
    name = {"/?": "/help", "/exit": "/bye", "/quit": "/bye"}.get(name.strip(), name.strip())
    if name not in _COMMANDS:
        near = difflib.get_close_matches(name, _COMMANDS, n=1)
        meant = f" Did you mean {near[0]}?" if near else ""
        raise Failure(f"There is no command {name}.{meant} /help lists them.")
    _COMMANDS[name].act(argument.strip(), state)


def completions(line: str, state: State) -> list[str]:
    """Return the words that may replace the last word of a line; empty if the line does not begin with a slash."""
    first, _, rest = line.partition(" ")
    if not line.startswith("/"):
        return []
    if " " not in line:
        return [name for name in _COMMANDS if name.startswith(line)]
    word = rest.rpartition(" ")[2]
    if first == "/model":
        names = [model.name for model in state.models if not model.dimensions]
        return [name for name in names if name.startswith(word) or name.rpartition("/")[2].startswith(word)]
    if first == "/set" and " " not in rest:
        return [name for name in _PARAMETERS if name.startswith(word)]
    return completed_paths(word) if first in ("/save", "/load", "/schema", "/file") else []


def _help(argument: str, state: State) -> None:
    width = max(len(f"{name} {command.form}") for name, command in _COMMANDS.items())
    for name, command in _COMMANDS.items():
        tell(f"{f'{name} {command.form}':{width}}  {command.meaning}")
    for key, meaning in _KEYS.items():
        tell(f"{key:{width}}  {meaning}")


def _model(argument: str, state: State) -> None:
    if not argument:
        state.models = state.client.models()
        for model in state.models:
            if not model.dimensions:
                mark = "*" if model.name == state.conversation.model else " "
                tell(f"{mark} {model.name}  ({model.context_length} tokens in, {model.sequence_length} out)")
        return
    try:
        state.models = state.client.models()
        state.conversation.model = served_name(state.models, argument)
    except Refusal as error:
        raise Failure(str(error)) from None
    note(f"Talking to {state.conversation.model} now. The conversation continues; /clear forgets it.")


def _system(argument: str, state: State) -> None:
    if not argument:
        tell(state.conversation.system or "There is no system message. /system TEXT sets one.")
        return
    state.conversation.system = "" if argument in _UNSET else argument
    note("The system message is removed." if argument in _UNSET else "The system message is set.")


def _set(argument: str, state: State) -> None:
    name, _, text = argument.partition(" ")
    sampling = state.conversation.sampling
    if not name:
        for each in _PARAMETERS:
            tell(f"{each:20} {sampling.get(each, 'default')}")
        tell(f"{'stop':20} {', '.join(map(json.dumps, state.conversation.stop)) or 'none'}")
        return
    name, text = name.replace("-", "_"), text.strip()
    if name == "stop":
        state.conversation.stop = () if text in _UNSET or not text else (text,)
    elif name not in _PARAMETERS:
        near = difflib.get_close_matches(name, _PARAMETERS, n=1)
        raise Failure(f"There is no parameter {name}. {f'Did you mean {near[0]}? ' if near else ''}/set lists them.")
    elif text in _UNSET:
        sampling.pop(name, None)
    elif not text:
        raise Failure(f"/set {name} needs a value, or `default`.")
    else:
        try:
            sampling[name] = parse_value(name, text)
        except ValueError as error:
            raise Failure(f"{name}: {error}.") from None
    note(f"{name} = {text or 'none'}")


def _schema(argument: str, state: State) -> None:
    if not argument:
        tell(state.conversation.schema or "Replies are text. /schema FILE or /schema JSON sets a JSON Schema.")
        return
    state.conversation.schema = None if argument in _UNSET else schema_text(argument, name="/schema")
    note("Replies are text again." if argument in _UNSET else "Replies match the schema now.")


def _file(argument: str, state: State) -> None:
    if not argument:
        listed = ", ".join(map(str, state.files))
        tell(f"Attached to the next question: {listed}" if listed else "No file is attached. /file PATH attaches one.")
        return
    if argument in _UNSET:
        state.files = ()
        note("No file is attached.")
        return
    file = read_file(named_path(argument, "/file"))
    state.files = (*(each for each in state.files if each.path != file.path), file)
    note(f"The next question contains {', '.join(map(str, state.files))}. /file off removes it.")


def _clear(argument: str, state: State) -> None:
    state.conversation.turns.clear()
    files = " and the attached files are" if state.files else " is"
    state.files, state.asked, state.last_stats = (), None, None
    note(f"The conversation{files} forgotten. System message and parameters stay.")


def _save(argument: str, state: State) -> None:
    path = named_path(argument, "/save")
    save(state.conversation, path)
    note(f"Saved {len(state.conversation.turns)} messages in {path}.")


def _load(argument: str, state: State) -> None:
    loaded = load(named_path(argument, "/load"))
    state.conversation, state.asked, state.last_stats = loaded, None, None
    question = loaded.turns[-2][1].replace("\n", " ") if loaded.turns else ""
    last = f" The last question: {question[:_MAX_SHOWN]}" if question else ""
    note(f"Loaded {len(loaded.turns)} messages for {loaded.model}.{last}")
    if all(model.name != loaded.model for model in state.models):
        note(f"The server has no model {loaded.model}: choose one with /model NAME.")


def _regenerate(argument: str, state: State) -> None:
    if not state.conversation.turns:
        raise Failure("There is no reply to generate again.")
    state.next_question = state.conversation.turns[-2][1]


def _continue(argument: str, state: State) -> None:
    if not state.conversation.last_reply:
        raise Failure("There is no text to continue." if state.conversation.turns else "There is no reply to continue.")
    if state.conversation.schema is not None:
        raise Failure(
            "A reply that matches a JSON Schema cannot be continued: raise max_tokens with /set, then /regenerate."
        )
    if state.last_stats is not None and state.last_stats.finish not in _CUT:
        raise Failure("The last reply is complete: no limit cut it.")
    state.continues = True


def _edit(argument: str, state: State) -> None:
    if not state.can_edit:
        raise Failure("/edit needs a terminal.")
    if not state.conversation.turns:
        raise Failure("There is no question to edit.")
    question = state.conversation.turns[-2][1]
    typed, files = state.asked or (question, ())
    if with_files(files, typed) != question:  # `asked` is not the newest question
        typed, files = question, ()
    state.draft, state.edited_files, state.replaces_last = typed, files, True
    if files:
        note(f"The question keeps {', '.join(map(str, files))}.")


def _copy(argument: str, state: State) -> None:
    reply = state.conversation.last_reply
    if not reply:
        raise Failure("There is no reply to copy.")
    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        raise Failure("/copy needs a terminal that has a clipboard.")
    # OSC 52: the terminal itself sets the clipboard, also through ssh.
    print(f"\033]52;c;{base64.b64encode(reply.encode()).decode()}\a", end="", file=sys.stderr, flush=True)
    note(f"Copied {len(reply)} characters, if this terminal lets programs set the clipboard.")


def _stats(argument: str, state: State) -> None:
    stats = state.last_stats
    tell(str(stats) if stats is not None else "There is no reply yet.")
    tell(f"{len(state.conversation.turns)} messages, {state.total_tokens} generated tokens in this chat")


def _bye(argument: str, state: State) -> None:
    state.is_ended = True


@dataclass(frozen=True)
class _Command:
    """A command. `form`: its arguments as /help shows them."""

    form: str
    meaning: str
    act: Callable[[str, State], None]


_COMMANDS: dict[str, _Command] = {
    "/help": _Command("", "show this list", _help),
    "/model": _Command("[NAME]", "list the models, or talk to another one", _model),
    "/system": _Command("[TEXT]", "show or set the system message; off removes it", _system),
    "/set": _Command("[NAME VALUE]", "show or set sampling parameters; default resets one", _set),
    "/schema": _Command("[FILE]", "show or set the JSON Schema of replies; off removes it", _schema),
    "/regenerate": _Command("", "replace the last reply by another one", _regenerate),
    "/continue": _Command("", "continue the last reply, which was cut", _continue),
    "/edit": _Command("", "edit the last question and ask it again", _edit),
    "/file": _Command(
        "[PATH]", "list the attached text files, or attach one to the next question; off removes them", _file
    ),
    "/clear": _Command("", "forget the conversation", _clear),
    "/save": _Command("FILE", "write the conversation to a file", _save),
    "/load": _Command("FILE", "continue the conversation of a file", _load),
    "/copy": _Command("", "copy the last reply to the clipboard", _copy),
    "/stats": _Command("", "show token counts and times of the last reply", _stats),
    "/bye": _Command("", "end the chat", _bye),
}
