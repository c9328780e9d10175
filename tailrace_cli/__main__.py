"""`tailrace`, or `python -m tailrace_cli`: reads the command line and hands over. Every mistake ends in one sentence."""

import argparse
import os
import sys
from collections.abc import Callable
from importlib.metadata import version

from tailrace_cli.asking import Ask, Door, Failure, Refusal, chat, models, run

DEFAULT_URL = "http://127.0.0.1:8787"
DEFAULT_GRPC_ADDRESS = "127.0.0.1:50051"
# What a shell reports for a program that Ctrl-C ended.
EXIT_INTERRUPTED = 130


def main() -> int:
    """Returns the exit code: 0, 1 after an error that was told in one sentence, 2 for wrong usage, 130 after Ctrl-C."""
    options = _parser().parse_args()
    try:
        return int(options.command(options))
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Whoever read the output has enough. Python would complain once more when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (Failure, Refusal) as error:
        print(error, file=sys.stderr)
        return 1


def _run(options: argparse.Namespace) -> int:
    prompt = sys.stdin.read() if options.prompt == ["-"] else " ".join(options.prompt)
    if not prompt.strip():
        raise Failure("The prompt is empty.")
    run(_door(options), _ask(options, prompt), shows_figures=options.stats)
    return 0


def _chat(options: argparse.Namespace) -> int:
    chat(_door(options), _ask(options, ""))
    return 0


def _models(options: argparse.Namespace) -> int:
    models(_door(options))
    return 0


def _serve(options: argparse.Namespace) -> int:
    from tailrace_cli.serve import serve

    return serve()


def _doctor(options: argparse.Namespace) -> int:
    from tailrace_cli.doctor import doctor

    return doctor(options.url, options.token)


def _token(options: argparse.Namespace) -> int:
    from tailrace_cli.tokens import make_token

    make_token(options.account)
    return 0


def _door(options: argparse.Namespace) -> Door:
    if options.grpc:
        from tailrace_cli.rpc import GrpcDoor

        return GrpcDoor(options.grpc_address)
    from tailrace_cli.rest import RestDoor

    return RestDoor(options.url, options.token)


def _ask(options: argparse.Namespace, prompt: str) -> Ask:
    return Ask(
        model=options.model,
        prompt=prompt,
        system=options.system,
        raw=getattr(options, "raw", False),
        max_tokens=options.max_tokens,
        temperature=options.temperature,
        seed=options.seed,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tailrace", description="Workers AI text generation on your own hardware.")
    parser.add_argument("--version", action="version", version=f"tailrace {version('tailrace')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    serve = commands.add_parser("serve", help="start the inference server and the bridge")
    serve.set_defaults(command=_serve)

    asked = commands.add_parser("run", help="ask a model and show its reply as it grows")
    asked.add_argument("model", type=_text, metavar="MODEL", help="its name, as `tailrace models` shows it")
    asked.add_argument(
        "prompt", nargs="+", type=_text, metavar="PROMPT", help="several words become one; - reads stdin"
    )
    asked.add_argument("--raw", action="store_true", help="let the model continue the text: no chat template")
    asked.add_argument("--stats", action="store_true", help="tell tokens and times on stderr")
    asked.set_defaults(command=_run)

    talk = commands.add_parser("chat", help="talk to a model; an empty line or Ctrl-D ends")
    talk.add_argument("model", nargs="?", default="", type=_text, metavar="MODEL", help="the first one by default")
    talk.set_defaults(command=_chat)

    for command in (asked, talk):
        command.add_argument("--system", type=_text, default="", help="a system turn before everything")
        command.add_argument("--max-tokens", type=_whole(2**32 - 1), help="longest reply, in tokens")
        command.add_argument("--temperature", type=float, help="0 to 5; 0 always takes the likeliest token")
        command.add_argument("--seed", type=_whole(9_999_999_999), help="the same seed gives the same reply")

    listed = commands.add_parser("models", help="name the models that can be asked")
    listed.set_defaults(command=_models)
    checked = commands.add_parser("doctor", help="check this machine and the stack, and say what to do")
    checked.set_defaults(command=_doctor)
    token = commands.add_parser("token", help="make an API token, and its line for TAILRACE_API_TOKENS_FILE")
    token.add_argument("account", type=_text, metavar="ACCOUNT", help="the one that it is for; '*' is every account")
    token.set_defaults(command=_token)
    for command in (asked, talk, listed):
        command.add_argument("--grpc", action="store_true", help="ask the inference server itself, not the bridge")
        # Of several servers, the first.
        address = (os.environ.get("TAILRACE_GRPC_ADDRESS") or DEFAULT_GRPC_ADDRESS).partition(",")[0]
        command.add_argument("--grpc-address", default=address, help="host:port for --grpc (%(default)s)")
    for command in (asked, talk, listed, checked):
        command.add_argument("--url", default=_default_url(), help="the bridge (%(default)s)")
        known = os.environ.get("TAILRACE_TOKEN", "")
        command.add_argument("--token", default=known, help="API token; TAILRACE_TOKEN keeps it out of the history")
    return parser


def _default_url() -> str:
    address = os.environ.get("TAILRACE_HTTP_ADDRESS")
    if not address:
        return os.environ.get("TAILRACE_URL") or DEFAULT_URL
    host, _, port = address.rpartition(":")
    return f"http://{'127.0.0.1' if host in ('0.0.0.0', '[::]') else host}:{port}"


def _text(argument: str) -> str:
    # Bytes that are no UTF-8 reach Python as lone surrogates, which no message can hold.
    return argument.encode(errors="surrogateescape").decode(errors="replace")


def _whole(maximum: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        number = int(text)
        if not 1 <= number <= maximum:
            raise argparse.ArgumentTypeError(f"must be 1 to {maximum}")
        return number

    parse.__name__ = "whole number"
    return parse


if __name__ == "__main__":
    sys.exit(main())
