"""The command `tailrace`, also `python -m tailrace_cli`: parses the command line and runs one subcommand.

Every error ends the command with one sentence on stderr. The services are imported only by `serve` and `doctor`.
"""

import argparse
import sys
from collections.abc import Callable
from importlib.metadata import version

from tailrace_cli import environment
from tailrace_cli.client import Client, Request, chat, models, run
from tailrace_cli.errors import Failure, Refusal

# Exit code that a shell reports for a program that Ctrl-C ended.
EXIT_INTERRUPTED = 130

_Command = Callable[[argparse.Namespace], int]


def main() -> int:
    """Run the command line's subcommand.

    Returns:
        The exit code: 0, 1 after an error, 2 for invalid usage, 130 after Ctrl-C.
    """
    options = _parser().parse_args()
    try:
        if sys.stdout is None and options.command is not _serve:  # the services log to stderr
            raise Failure("Standard output is closed, so the result cannot be written.")
        return int(options.command(options))
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # the program that reads the output, such as head, has ended
        return 1
    except (Failure, Refusal) as error:
        print(error, file=sys.stderr)
        return 1


def _run(options: argparse.Namespace) -> int:
    prompt = sys.stdin.read() if options.prompt == ["-"] else " ".join(options.prompt)
    if not prompt.strip():
        raise Failure("The prompt is empty.")
    run(_client(options), _request(options, prompt), shows_stats=options.stats)
    return 0


def _chat(options: argparse.Namespace) -> int:
    chat(_client(options), _request(options, ""))
    return 0


def _models(options: argparse.Namespace) -> int:
    models(_client(options))
    return 0


def _serve(options: argparse.Namespace) -> int:
    from tailrace_cli.serve import serve

    return serve()


def _doctor(options: argparse.Namespace) -> int:
    from tailrace_cli.doctor.command import doctor

    return doctor(options.url, options.token)


def _token(options: argparse.Namespace) -> int:
    from tailrace_cli.tokens import make_token

    make_token(options.account)
    return 0


def _client(options: argparse.Namespace) -> Client:
    if options.grpc:
        from tailrace_cli.rpc import GrpcClient

        return GrpcClient(options.grpc_address)
    from tailrace_cli.rest import RestClient

    return RestClient(options.url or environment.bridge_url(), options.token)


def _request(options: argparse.Namespace, prompt: str) -> Request:
    return Request(
        model=options.model,
        prompt=prompt,
        system=options.system,
        raw=getattr(options, "raw", False),
        max_tokens=options.max_tokens,
        temperature=options.temperature,
        seed=options.seed,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tailrace",
        description="Workers AI text generation on your own hardware.",
        epilog=environment.HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"tailrace {version('tailrace')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    run_parser = _add_command(
        commands, "run", _run, "send a prompt to a model and print the reply while it is generated"
    )
    run_parser.add_argument("model", type=_text, metavar="MODEL", help="name of the model, as in `tailrace models`")
    run_parser.add_argument(
        "prompt", nargs="+", type=_text, metavar="PROMPT", help="words are joined by spaces; - reads stdin"
    )
    run_parser.add_argument("--raw", action="store_true", help="continue the text, without a chat template")
    run_parser.add_argument("--stats", action="store_true", help="report token counts and times on stderr")
    chat_parser = _add_command(commands, "chat", _chat, "talk to a model; an empty line or Ctrl-D ends")
    chat_parser.add_argument(
        "model", nargs="?", default="", type=_text, metavar="MODEL", help="name of the model; by default the first one"
    )
    models_parser = _add_command(commands, "models", _models, "list the models with their limits")
    _add_command(commands, "serve", _serve, "start the inference server and the bridge")
    doctor_parser = _add_command(commands, "doctor", _doctor, "check this machine, the settings and the services")
    token_parser = _add_command(
        commands, "token", _token, "make an API token, and its line for TAILRACE_API_TOKENS_FILE"
    )
    token_parser.add_argument(
        "account", type=_text, metavar="ACCOUNT", help="account that the token is for; '*' is every account"
    )
    for command in (run_parser, chat_parser):
        _add_request_options(command)
    for command in (run_parser, chat_parser, models_parser):
        _add_grpc_options(command)
    for command in (run_parser, chat_parser, models_parser, doctor_parser):
        _add_bridge_options(command)
    return parser


def _add_command(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, function: _Command, summary: str
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
    parser.set_defaults(command=function)
    return parser


def _add_request_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--system", type=_text, default="", help="system message before the conversation")
    command.add_argument("--max-tokens", type=_integer(2**32 - 1), help="longest reply, in tokens")
    command.add_argument("--temperature", type=float, help="0 to 5; 0 always selects the most likely token")
    command.add_argument(
        "--seed", type=_integer(9_999_999_999), help="seed of the random numbers; the same seed repeats the reply"
    )


def _add_grpc_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--grpc", action="store_true", help="call the inference server directly, not the bridge")
    command.add_argument(
        "--grpc-address",
        default=environment.grpc_address(),
        help="inference server for --grpc as host:port; by default TAILRACE_GRPC_ADDRESS (%(default)s)",
    )


def _add_bridge_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--url",
        help=f"URL of the bridge; by default TAILRACE_HTTP_ADDRESS, else TAILRACE_URL, else {environment.DEFAULT_URL}",
    )
    command.add_argument(
        "--token",
        default=environment.variable("TAILRACE_TOKEN"),
        help="API token; by default TAILRACE_TOKEN, which keeps it out of the shell's history",
    )


def _text(argument: str) -> str:
    # Python represents bytes that are not UTF-8 as lone surrogates, which neither JSON nor protobuf can represent.
    return argument.encode(errors="surrogateescape").decode(errors="replace")


def _integer(maximum: int) -> Callable[[str], int]:
    """Return a parser of integers from 1 to `maximum`."""

    def parse(text: str) -> int:
        number = int(text)
        if not 1 <= number <= maximum:
            raise argparse.ArgumentTypeError(f"must be 1 to {maximum}")
        return number

    parse.__name__ = "integer"  # argparse shows this name in its message
    return parse


if __name__ == "__main__":
    sys.exit(main())
