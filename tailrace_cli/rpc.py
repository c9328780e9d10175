"""The way straight to the inference server: gRPC, by the contract's stubs."""

from collections.abc import Iterator

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status  # type: ignore[import-untyped]

from tailrace.v1 import inference_pb2 as pb
from tailrace.v1.inference_pb2_grpc import InferenceServiceStub
from tailrace_cli.asking import Ask, Failure, Figures, ModelLine, Refusal

_LIST_SECONDS = 10.0


class GrpcDoor:
    """An inference server at `address`, host:port."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._stub = InferenceServiceStub(grpc.insecure_channel(address))

    def stream(self, ask: Ask, figures: Figures) -> Iterator[str]:
        call = self._stub.Run(_request(ask))
        try:
            for event in call:
                if event.delta.text:
                    yield event.delta.text
                if event.HasField("completed"):
                    usage = event.completed.usage
                    figures.prompt_tokens, figures.completion_tokens = usage.prompt_tokens, usage.completion_tokens
        except grpc.RpcError as error:
            raise self._explained(error) from None
        finally:
            call.cancel()

    def models(self) -> list[ModelLine]:
        try:
            found = self._stub.ListModels(pb.ListModelsRequest(), timeout=_LIST_SECONDS).models
        except grpc.RpcError as error:
            raise self._explained(error) from None
        return [
            ModelLine(model.name, model.description, model.context_length, model.sequence_length) for model in found
        ]

    def _explained(self, error: grpc.RpcError) -> Failure | Refusal:
        """The server's own reason if it gave one."""
        if not isinstance(error, grpc.Call):
            return Failure(f"The call to {self._address} failed.")
        info, bad_request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
        status = rpc_status.from_call(error)
        for packed in status.details if status else ():
            for detail in (info, bad_request):
                packed.Unpack(detail)
        if bad_request.field_violations:
            wrong = "; ".join(
                f"{violation.field} {violation.description}" for violation in bad_request.field_violations
            )
            return Refusal(f"The server at {self._address} refused the request: {wrong}.")
        if info.reason:
            return Refusal(f"The server at {self._address} answered {info.reason}: {error.details()}.")
        if error.code() is grpc.StatusCode.UNAVAILABLE:
            return Failure(f"No server answers at {self._address}: start one with `tailrace serve`.")
        return Failure(f"The call to {self._address} failed with {error.code().name}.")


def _request(ask: Ask) -> pb.RunRequest:
    # A field that is None stays unset, and the server takes its default.
    sampling = pb.Sampling(max_tokens=ask.max_tokens, temperature=ask.temperature, seed=ask.seed)
    request = pb.RunRequest(model=ask.model, sampling=sampling)
    if ask.raw:
        request.text = ask.prompt
    else:
        request.chat.turns.extend(pb.ChatTurn(role=role, content=content) for role, content in ask.messages)
    return request
