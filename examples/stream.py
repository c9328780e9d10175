"""Ask a model over gRPC and show its reply as it grows: `python -m examples.stream where is new york`.

Needs the contract's stubs and nothing else of Tailrace. Ctrl-C cancels the run on the server too.
"""

import argparse
import os
import signal
import sys
from collections.abc import Callable

import grpc
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2
from grpc_status import rpc_status  # type: ignore[import-untyped]

from tailrace.v1 import inference_pb2 as pb
from tailrace.v1.inference_pb2_grpc import InferenceServiceStub

DEFAULT_ADDRESS = "127.0.0.1:50051"
DEFAULT_MODEL = "@cf/meta/llama-2-7b-chat-int8"
# What a shell reports for a program that Ctrl-C ended.
EXIT_INTERRUPTED = 130
# Characters that a terminal obeys instead of showing; a reply may keep its line ends and tabs.
_CONTROLS = dict.fromkeys({*range(0x20), *range(0x7F, 0xA0)} - {ord("\n"), ord("\t")})


def main() -> int:
    """Returns the exit code: 0, 1 after an error that was told in one sentence, 130 after Ctrl-C."""
    parser = _parser()
    options = parser.parse_args()
    if not options.list and not options.prompt:
        parser.error("a prompt is required, or --list")
    try:
        with grpc.insecure_channel(options.address) as channel:
            stub = InferenceServiceStub(channel)
            if options.list:
                list_models(stub)
            else:
                stream(stub, run_request(options))
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Whoever read the output has enough. Python would complain once more when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except grpc.RpcError as error:
        print(explain(error, options.address), file=sys.stderr)
        return 1
    return 0


def run_request(options: argparse.Namespace) -> pb.RunRequest:
    # A field that is None stays unset, and the server takes its default.
    sampling = pb.Sampling(max_tokens=options.max_tokens, temperature=options.temperature, seed=options.seed)
    request = pb.RunRequest(model=options.model, sampling=sampling)
    prompt = " ".join(options.prompt)
    if options.raw:
        request.text = prompt
    else:
        if options.system:
            request.chat.turns.add(role="system", content=options.system)
        request.chat.turns.add(role="user", content=prompt)
    return request


def stream(stub: InferenceServiceStub, request: pb.RunRequest) -> None:
    """Print the reply's text as it comes, and at the end one line about it on stderr. Ctrl-C raises KeyboardInterrupt."""
    call = stub.Run(request)
    is_interrupted = False

    def interrupt(*_: object) -> None:
        nonlocal is_interrupted
        is_interrupted = True
        call.cancel()

    # Raised inside gRPC, Python's own KeyboardInterrupt can get lost, and the reply would go on.
    previous = signal.signal(signal.SIGINT, interrupt)
    has_text = False
    try:
        for event in call:
            if event.delta.text:
                has_text = True
                print(_shown(event.delta.text), end="", flush=True)
            if event.HasField("completed"):
                print(flush=True)
                has_text = False
                print(_dim(_summary(event.completed)), file=sys.stderr)
    except grpc.RpcError:
        if not is_interrupted:
            raise
        raise KeyboardInterrupt from None
    finally:
        signal.signal(signal.SIGINT, previous)
        # The server frees the run's slot at once; without this it would go on for nobody. After the end it does nothing.
        call.cancel()
        if has_text:
            print(flush=True)


def list_models(stub: InferenceServiceStub) -> None:
    for model in stub.ListModels(pb.ListModelsRequest()).models:
        print(model.name)
        print(f"    {model.description}")
        print(f"    {model.context_length} tokens in, {model.sequence_length} out; {model.weights}, {model.precision}")


def explain(error: grpc.RpcError, address: str) -> str:
    """One sentence about a call that failed: the server's own reason if it gave one."""
    if not isinstance(error, grpc.Call):
        return f"The call to {address} failed."
    info, bad_request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    status = rpc_status.from_call(error)
    for packed in status.details if status else ():
        for detail in (info, bad_request):
            packed.Unpack(detail)
    if bad_request.field_violations:
        wrong = "; ".join(f"{violation.field} {violation.description}" for violation in bad_request.field_violations)
        return f"The server at {address} refused the request: {wrong}."
    if info.reason:
        return f"The server at {address} answered {info.reason}: {error.details()}."
    if error.code() is grpc.StatusCode.UNAVAILABLE:
        return f"No server answers at {address}: start one with `make run`, or name another with --address."
    return f"The call to {address} failed with {error.code().name}."


def _summary(completed: pb.Completed) -> str:
    usage, timings = completed.usage, completed.timings
    parts = [
        pb.FinishReason.Name(completed.finish_reason).removeprefix("FINISH_REASON_").lower(),
        f"{usage.prompt_tokens} prompt + {usage.completion_tokens} completion tokens",
        f"first token after {_seconds(timings.queue) + _seconds(timings.prefill):.2f} s",
    ]
    # The first token is the prefill's: the rest took the decode time.
    if (decode_seconds := _seconds(timings.decode)) > 0:
        parts.append(f"{(usage.completion_tokens - 1) / decode_seconds:.1f} tokens/s")
    return " · ".join(parts)


def _seconds(duration: Duration) -> float:
    return duration.seconds + duration.nanos / 1e9


def _shown(text: str) -> str:
    return text.translate(_CONTROLS) if sys.stdout.isatty() else text


def _dim(text: str) -> str:
    return f"\033[2m{text}\033[0m" if sys.stderr.isatty() else text


def _text(argument: str) -> str:
    # Bytes that are no UTF-8 reach Python as lone surrogates, which no message can hold.
    return argument.encode(errors="surrogateescape").decode(errors="replace")


def _whole_number(maximum: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        number = int(text)
        if not 0 <= number <= maximum:
            raise argparse.ArgumentTypeError(f"must be 0 to {maximum}")
        return number

    parse.__name__ = "whole number"
    return parse


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="stream.py", description="Stream a model's reply to the terminal.")
    parser.add_argument("prompt", nargs="*", type=_text, help="what to ask; several words become one prompt")
    parser.add_argument("--list", action="store_true", help="name the server's models, and ask nothing")
    parser.add_argument("--model", type=_text, default=DEFAULT_MODEL, help="which model answers (%(default)s)")
    address = os.environ.get("TAILRACE_GRPC_ADDRESS") or DEFAULT_ADDRESS
    parser.add_argument("--address", default=address, help="host:port of the inference server (%(default)s)")
    parser.add_argument("--system", type=_text, help="a system turn before the prompt")
    parser.add_argument("--raw", action="store_true", help="let the model continue the text as it is: no chat template")
    parser.add_argument("--max-tokens", type=_whole_number(2**32 - 1), help="longest reply, in tokens")
    parser.add_argument("--temperature", type=float, help="0 to 5; 0 always takes the likeliest token")
    parser.add_argument("--seed", type=_whole_number(2**64 - 1), help="the same seed gives the same reply")
    return parser


if __name__ == "__main__":
    sys.exit(main())
