"""The client of `--grpc`, with a gRPC server that repeats the account of a request, or the answer that it continues."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc

from tailrace.v1 import inference_pb2 as pb
from tailrace.v1 import inference_pb2_grpc
from tailrace_cli.client import ReplyStats, Request
from tailrace_cli.rpc import GrpcClient


class Repeating(inference_pb2_grpc.InferenceServiceServicer):
    def Run(self, request, context):
        text = request.chat.turns[-1].content if request.chat.continue_final_turn else request.account
        yield pb.RunResponse(delta=pb.Delta(text=text, tokens=1))


@contextmanager
def repeating():
    """Yield the address of a server."""
    server = grpc.server(ThreadPoolExecutor(1))
    inference_pb2_grpc.add_InferenceServiceServicer_to_server(Repeating(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(0)


def test_the_account_of_the_option_reaches_the_server():
    with repeating() as address:
        pieces = list(GrpcClient(address, "acme").stream(Request(model="m", prompt="hi"), ReplyStats()))
    assert [piece.text for piece in pieces] == ["acme"]


def test_a_continued_answer_is_the_last_turn():
    request = Request(model="m", prompt="", turns=(("user", "one"), ("assistant", "re")), continues=True)
    with repeating() as address:
        pieces = list(GrpcClient(address, "acme").stream(request, ReplyStats()))
    assert [piece.text for piece in pieces] == ["re"]
