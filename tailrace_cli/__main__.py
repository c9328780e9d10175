"""The command `tailrace`, also `python -m tailrace_cli`: parses the command line and runs one subcommand.

Every error ends the command with one sentence on stderr. The services are imported only by the commands that need them.
"""

import argparse
import sys

from tailrace_cli import environment, sampling
from tailrace_cli.client import Client, Request, full_name
from tailrace_cli.display.replies import models, run
from tailrace_cli.errors import Failure, Refusal, UnknownName
from tailrace_cli.output import is_terminal, replace_unencodable, tell, write
from tailrace_cli.parser import make_parser, parse
from tailrace_cli.prompt import divide, read_prompt, schema_text

# Exit code that a shell reports for a program that Ctrl-C ended.
EXIT_INTERRUPTED = 130


def main() -> int:
    """Run the command line's subcommand.

    Returns:
        The exit code: 0, 1 after an error, 2 for invalid usage, 130 after Ctrl-C.
    """
    replace_unencodable()
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
        tell(str(error))
        return 1


def _run(options: argparse.Namespace) -> int:
    model, words = divide(options.words, options.model)
    try:
        return _reply(options, model, words)
    except UnknownName as error:
        if words or options.model is not None:
            raise
        raise Failure(f'{error} A prompt of one word needs a model before it: tailrace run "" {model}') from None


def _reply(options: argparse.Namespace, model: str, words: list[str]) -> int:
    """Print one reply. In a terminal, begin a conversation if there are no words, no files and no `--raw`."""
    if not words and not options.files and not options.raw and is_terminal(sys.stdin):
        return _talk(options, model, keeps_history=True)
    prompt = read_prompt(words, options.files)
    client = _client(options)
    request = _request(options, full_name(client, model), prompt)
    run(client, request, shows_stats=options.stats, is_plain=options.plain)
    return 0


def _chat(options: argparse.Namespace) -> int:
    return _talk(options, options.model, keeps_history=not options.no_history)


def _talk(options: argparse.Namespace, model: str, *, keeps_history: bool) -> int:
    from tailrace_cli.chatting.session import chat

    request = _request(options, model, "")
    return chat(_client(options), request, is_plain=options.plain, keeps_history=keeps_history)


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

    return doctor(options.url, options.token, options.account)


def _token(options: argparse.Namespace) -> int:
    from tailrace_cli.tokens import make_token

    make_token(options.account)
    return 0


def _completion(options: argparse.Namespace) -> int:
    from tailrace_cli.completion import script

    write(script(make_parser(_COMMANDS), options.shell))
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
    "completion": _completion,
}


def _client(options: argparse.Namespace) -> Client:
    if options.grpc:
        try:
            from tailrace_cli.rpc import GrpcClient
        except ModuleNotFoundError as error:
            raise Failure(
                f"--grpc needs a package that is not installed ({error.name}): pip install . in a clone."
            ) from None
        return GrpcClient(options.grpc_address, options.account)
    from tailrace_cli.rest import RestClient

    return RestClient(options.url or environment.bridge_url(), options.token, options.account)


def _request(options: argparse.Namespace, model: str, prompt: str) -> Request:
    return Request(
        model=model,
        prompt=prompt,
        system=options.system,
        raw=getattr(options, "raw", False),
        sampling=sampling.chosen(options),
        stop=tuple(options.stop),
        schema=schema_text(options.schema),
    )


if __name__ == "__main__":
    sys.exit(main())
