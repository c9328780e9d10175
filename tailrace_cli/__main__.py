"""The command `tailrace`, also `python -m tailrace_cli`: parses the command line and runs one subcommand.

Every error ends the command with one sentence on stderr. The services are imported only by the commands that need them.
"""

import argparse
import sys

from tailrace_cli import environment
from tailrace_cli.client import Client, Request, full_name, models, run
from tailrace_cli.errors import Failure, Refusal
from tailrace_cli.parser import parse
from tailrace_cli.prompt import divide, read_prompt, schema_text

# Exit code that a shell reports for a program that Ctrl-C ended.
EXIT_INTERRUPTED = 130


def main() -> int:
    """Run the command line's subcommand.

    Returns:
        The exit code: 0, 1 after an error, 2 for invalid usage, 130 after Ctrl-C.
    """
    options = parse(_COMMANDS)
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
    model, words = divide(options.words, options.model)
    if not words and sys.stdin is not None and sys.stdin.isatty():
        from tailrace_cli.chat import chat

        return chat(_client(options), _request(options, model, ""))
    prompt = read_prompt(words)
    client = _client(options)
    run(client, _request(options, full_name(client, model), prompt), shows_stats=options.stats)
    return 0


def _chat(options: argparse.Namespace) -> int:
    from tailrace_cli.chat import chat

    return chat(_client(options), _request(options, options.model, ""))


def _models(options: argparse.Namespace) -> int:
    models(_client(options))
    return 0


def _ps(options: argparse.Namespace) -> int:
    from tailrace_cli.served import ps

    url = f"grpc://{options.grpc_address}" if options.grpc else options.url or environment.bridge_url()
    return ps(_client(options), url=url, as_json=options.json)


def _pull(options: argparse.Namespace) -> int:
    from tailrace_cli.stored import pull

    return pull(options.models)


def _list(options: argparse.Namespace) -> int:
    from tailrace_cli.stored import list_stored

    return list_stored(as_json=options.json)


def _rm(options: argparse.Namespace) -> int:
    from tailrace_cli.stored import remove

    return remove(options.models)


def _serve(options: argparse.Namespace) -> int:
    from tailrace_cli.serving.options import ServeOptions
    from tailrace_cli.serving.serve import serve

    return serve(
        ServeOptions(
            models=tuple(options.models),
            host=options.host,
            port=options.port,
            catalog=options.catalog,
            device=options.device,
            precision=options.precision,
            max_context=options.max_context,
            deterministic=options.deterministic,
            record=options.record,
            replay=options.replay,
        )
    )


def _doctor(options: argparse.Namespace) -> int:
    from tailrace_cli.doctor.command import doctor

    return doctor(options.url, options.token)


def _token(options: argparse.Namespace) -> int:
    from tailrace_cli.tokens import make_token

    make_token(options.account)
    return 0


_COMMANDS = {
    "serve": _serve,
    "run": _run,
    "chat": _chat,
    "models": _models,
    "ps": _ps,
    "pull": _pull,
    "list": _list,
    "rm": _rm,
    "doctor": _doctor,
    "token": _token,
}


def _client(options: argparse.Namespace) -> Client:
    if options.grpc:
        from tailrace_cli.rpc import GrpcClient

        return GrpcClient(options.grpc_address)
    from tailrace_cli.rest import RestClient

    return RestClient(options.url or environment.bridge_url(), options.token)


def _request(options: argparse.Namespace, model: str, prompt: str) -> Request:
    return Request(
        model=model,
        prompt=prompt,
        system=options.system,
        raw=getattr(options, "raw", False),
        max_tokens=options.max_tokens,
        temperature=options.temperature,
        top_p=options.top_p,
        seed=options.seed,
        stop=tuple(options.stop),
        schema=schema_text(getattr(options, "schema", None)),
    )


if __name__ == "__main__":
    sys.exit(main())
