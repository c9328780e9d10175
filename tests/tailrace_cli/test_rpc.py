"""The client of `--grpc`, with a gRPC server that repeats the account of a request."""

from concurrent.futures import ThreadPoolExecutor

import grpc

from tailrace.v1 import inference_pb2 as pb
from tailrace.v1 import inference_pb2_grpc
from tailrace_cli.client import ReplyStats, Request
from tailrace_cli.rpc import GrpcClient


class Repeating(inference_pb2_grpc.InferenceServiceServicer):
    def Run(self, request, context):
        yield pb.RunResponse(delta=pb.Delta(text=request.account, tokens=1))


def test_the_account_of_the_option_reaches_the_server():
    server = grpc.server(ThreadPoolExecutor(1))
    inference_pb2_grpc.add_InferenceServiceServicer_to_server(Repeating(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        pieces = list(GrpcClient(f"127.0.0.1:{port}", "acme").stream(Request(model="m", prompt="hi"), ReplyStats()))
    finally:
        server.stop(0)
    assert [piece.text for piece in pieces] == ["acme"]
