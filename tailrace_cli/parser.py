"""The command line of `tailrace`: its subcommands and their options."""

import argparse
from collections.abc import Callable, Mapping

from tailrace_cli import environment, sampling
from tailrace_cli.display.help import EPILOGS, HelpFormatter
from tailrace_shared.version import tailrace_version

Command = Callable[[argparse.Namespace], int]

_PRECISIONS = ("float32", "float16", "bfloat16", "bitsandbytes-int8", "int4")
_MODEL_FORMS = "name of Workers AI's catalogue, hub id (owner/name, owner/name:file.gguf), folder or GGUF file"
_SHELLS = ("bash", "zsh", "fish")
_MAX_PORT = 65535
_MAX_UINT32 = 2**32 - 1


def parse(commands: Mapping[str, Command]) -> argparse.Namespace:
    """Return the options of this process's command line. Exits with code 2 if it is invalid.

    Options may appear between the words of a prompt, or between the models of a list.

    Args:
        commands: See `make_parser`.
    """
    parser = make_parser(commands)
    options, rest = parser.parse_known_args()
    words = getattr(options, "words", getattr(options, "models", None))
    if isinstance(words, list) and not any(word.startswith("-") and word != "-" for word in rest):
        words += [_text(word) for word in rest]
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return options


def make_parser(commands: Mapping[str, Command]) -> argparse.ArgumentParser:
    """Return the parser of the command line.

    Args:
        commands: The function of each subcommand, by its name. The parsed options have it in `command`.
    """
    parser = argparse.ArgumentParser(
        prog="tailrace",
        description="Workers AI text generation on your own hardware.",
        epilog=environment.HELP,
        formatter_class=HelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"tailrace {tailrace_version()}")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND", title="commands")

    def add(name: str, summary: str) -> argparse.ArgumentParser:
        added = subparsers.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            epilog=EPILOGS.get(name),
            formatter_class=HelpFormatter,
        )
        added.set_defaults(command=commands[name])
        return added

    _add_serve(add("serve", "start the inference server and the bridge"))
    _add_run(add("run", "send a prompt to a model and print the reply while it is generated"))
    _add_chat(add("chat", "talk to a model"))
    _add_asking(add("models", "list the models with their limits"), has_grpc=True)
    _add_ps(add("ps", "list the models that a running server has, with its memory"))
    _add_stored(add("pull", "download models for a later start"), _MODEL_FORMS)
    _add_json(add("list", "list the models on this machine"))
    _add_stored(add("rm", "remove models from this machine"), "name as `tailrace list` prints it")
    _add_asking(add("doctor", "check this machine, the settings and the services"), has_grpc=False)
    token = add("token", "make an API token, and its line for TAILRACE_API_TOKENS_FILE")
    token.add_argument(
        "account", type=_text, metavar="ACCOUNT", help="account that the token is for; '*' is every account"
    )
    completion = add("completion", "print the completion script of a shell")
    completion.add_argument("shell", choices=_SHELLS, help="the shell")
    return parser


def _add_serve(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "models",
        nargs="*",
        type=_text,
        metavar="MODEL",
        help=f"{_MODEL_FORMS}; default: TAILRACE_MODELS, else every model of the catalog",
    )
    command.add_argument("--port", type=_integer(0, _MAX_PORT), help="port of the bridge; 0 selects a free one")
    command.add_argument(
        "--host", type=_text, help="host at which the bridge listens; beyond loopback it needs API tokens"
    )
    command.add_argument("--catalog", type=_text, metavar="FILE", help="catalog file (TAILRACE_CATALOG)")
    command.add_argument("--device", choices=("auto", "cpu", "cuda"), help="device of the models (TAILRACE_DEVICE)")
    command.add_argument(
        "--precision",
        choices=_PRECISIONS,
        metavar="FORMAT",
        help="precision of the models that generate text (TAILRACE_PRECISION): %(choices)s; by default chosen for device "
        "and memory",
    )
    command.add_argument(
        "--max-context",
        type=_integer(2, _MAX_UINT32),
        metavar="TOKENS",
        help="longest prompt and reply together (TAILRACE_MAX_CONTEXT); by default the model's window, if the memory suffices",
    )
    command.add_argument(
        "--deterministic",
        action="store_true",
        help="for tests: equal requests get byte-identical replies, at a lower speed (TAILRACE_DETERMINISTIC)",
    )
    command.add_argument("--record", type=_text, metavar="FOLDER", help="record every reply in this folder")
    command.add_argument(
        "--replay",
        type=_text,
        metavar="FOLDER",
        help="send recorded replies, and load no model; with --record of the same folder, record what is missing",
    )


def _add_run(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "words",
        nargs="*",
        type=_text,
        metavar="[MODEL] PROMPT",
        help="model, or the end of its name, and prompt; piped input precedes the prompt, and - reads the terminal. A prompt "
        "in quotation marks needs no model: the server's first one replies",
    )
    command.add_argument("-m", "--model", type=_text, metavar="MODEL", help="the model; all words are then the prompt")
    command.add_argument(
        "-f",
        "--file",
        action="append",
        default=[],
        dest="files",
        metavar="FILE",
        help="text file before the prompt; may be repeated",
    )
    command.add_argument("--raw", action="store_true", help="continue the text, without a chat template")
    command.add_argument("--stats", action="store_true", help="report token counts and times on stderr")
    _add_reply(command)
    _add_asking(command, has_grpc=True)


def _add_chat(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "model",
        nargs="?",
        default="",
        type=_text,
        metavar="MODEL",
        help="the model, or the end of its name; by default the first one",
    )
    command.add_argument("--no-history", action="store_true", help="keep no history of the questions")
    _add_reply(command)
    _add_asking(command, has_grpc=True)


def _add_ps(command: argparse.ArgumentParser) -> None:
    _add_json(command)
    _add_asking(command, has_grpc=True)


def _add_stored(command: argparse.ArgumentParser, form: str) -> None:
    command.add_argument("models", nargs="+", type=_text, metavar="MODEL", help=form)


def _add_json(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="print JSON")


def _add_reply(command: argparse.ArgumentParser) -> None:
    """Add the options of a command that generates text."""
    group = command.add_argument_group("reply")
    group.add_argument(
        "--system", type=_text, default="", metavar="TEXT", help="system message before the conversation"
    )
    group.add_argument("--schema", metavar="SCHEMA", help="JSON Schema, or its file, that the reply must match")
    group.add_argument(
        "--stop",
        type=_text,
        action="append",
        default=[],
        metavar="TEXT",
        help="text that ends the reply; may be repeated",
    )
    group.add_argument("--plain", action="store_true", help="do not style the reply's Markdown in a terminal")
    sampling.add_options(command.add_argument_group("sampling"))


def _add_asking(command: argparse.ArgumentParser, *, has_grpc: bool) -> None:
    """Add the options of a command that calls a running server. `has_grpc`: it can also use gRPC."""
    group = command.add_argument_group("connection")
    group.add_argument(
        "--url",
        help=f"URL of the bridge; by default TAILRACE_HTTP_ADDRESS, else TAILRACE_URL, else {environment.DEFAULT_URL}",
    )
    group.add_argument(
        "--token",
        default=environment.variable("TAILRACE_TOKEN"),
        help="API token; by default TAILRACE_TOKEN, which keeps it out of the shell's history",
    )
    group.add_argument(
        "--account",
        type=_text,
        default=environment.variable("TAILRACE_ACCOUNT"),
        help="account whose models are called; by default TAILRACE_ACCOUNT, else the token's",
    )
    if has_grpc:
        group.add_argument("--grpc", action="store_true", help="call the inference server directly, not the bridge")
        group.add_argument(
            "--grpc-address",
            default=environment.grpc_address(),
            metavar="ADDRESS",
            help="inference server for --grpc as host:port; by default TAILRACE_GRPC_ADDRESS (%(default)s)",
        )


def _text(argument: str) -> str:
    # Python represents bytes that are not UTF-8 as lone surrogates, which neither JSON nor protobuf can represent.
    return argument.encode(errors="surrogateescape").decode(errors="replace")


def _integer(minimum: int, maximum: int) -> Callable[[str], int]:
    """Return a parser of integers from `minimum` to `maximum`."""

    def parse(text: str) -> int:
        number = int(text)
        if not minimum <= number <= maximum:
            raise argparse.ArgumentTypeError(f"must be {minimum} to {maximum}")
        return number

    parse.__name__ = "integer"  # argparse shows this name in its message
    return parse
