"""A small client of the gRPC API: `python -m examples.stream where is new york`.

Needs only the contract's stubs of Tailrace. Ctrl-C cancels the run on the server too. For daily use there is
`tailrace run --grpc`.
"""

import os
import signal
import sys

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status  # type: ignore[import-untyped]

from tailrace.v1 import inference_pb2 as pb
from tailrace.v1.inference_pb2_grpc import InferenceServiceStub

ADDRESS = os.environ.get("TAILRACE_GRPC_ADDRESS") or "127.0.0.1:50051"
MODEL = os.environ.get("MODEL") or "@cf/meta/llama-2-7b-chat-int8"
# A shell's exit code for a program that Ctrl-C ended.
EXIT_INTERRUPTED = 130


def main() -> int:
    """Run the prompt. Returns the exit code: 0, 1 after an error, which is printed in one sentence, 130 after Ctrl-C."""
    prompt = " ".join(sys.argv[1:]) or "where is new york?"
    chat = pb.Chat(turns=[pb.ChatTurn(role="user", content=prompt)])
    # Unset fields take the server's defaults.
    request = pb.RunRequest(model=MODEL, chat=chat, sampling=pb.Sampling(seed=1, max_tokens=256))
    with grpc.insecure_channel(ADDRESS) as channel:
        call = InferenceServiceStub(channel).Run(request)
        # Cancelling frees the server's slot immediately. A KeyboardInterrupt raised inside gRPC can get lost.
        signal.signal(signal.SIGINT, lambda *_: call.cancel())
        try:
            for event in call:
                show(event)
        except grpc.RpcError:
            if call.code() is grpc.StatusCode.CANCELLED:
                return EXIT_INTERRUPTED
            print(explain(call), file=sys.stderr)
            return 1
    return 0


def show(event: pb.RunResponse) -> None:
    """Print an event. The first is `started`, then follow deltas, the last is `completed`."""
    if event.HasField("delta"):
        print(event.delta.text, end="", flush=True)
    elif event.HasField("completed"):
        usage, reason = event.completed.usage, pb.FinishReason.Name(event.completed.finish_reason)
        print(f"\n{reason}: {usage.prompt_tokens} prompt + {usage.completion_tokens} completion tokens")


def explain(call: grpc.Call) -> str:
    """Return the error as one sentence: the reason is in the status details (google.rpc), next to the message."""
    info = error_details_pb2.ErrorInfo()
    status = rpc_status.from_call(call)
    for detail in status.details if status else ():
        detail.Unpack(info)
    return f"{ADDRESS}: {call.code().name} {info.reason}: {call.details()}"


if __name__ == "__main__":
    sys.exit(main())
