"""The way straight to the inference server: gRPC, by the contract's stubs."""

import os
from collections.abc import Iterator

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status  # type: ignore[import-untyped]

from tailrace.v1 import inference_pb2 as pb
from tailrace.v1.inference_pb2_grpc import InferenceServiceStub
from tailrace_cli.asking import Ask, Failure, Figures, ModelLine, Refusal

_LIST_SECONDS = 10.0


class GrpcDoor:
    """An inference server at `address`, host:port, with TLS and a token if the environment has them. Raises Failure."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._has_tls = bool(os.environ.get("TAILRACE_GRPC_TLS_CA"))
        self._stub = InferenceServiceStub(_channel(address))
        self._metadata = _metadata()

    def stream(self, ask: Ask, figures: Figures) -> Iterator[str]:
        call = self._stub.Run(_request(ask), metadata=self._metadata)
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
            reply = self._stub.ListModels(pb.ListModelsRequest(), metadata=self._metadata, timeout=_LIST_SECONDS)
        except grpc.RpcError as error:
            raise self._explained(error) from None
        return [
            ModelLine(model.name, model.description, model.context_length, model.sequence_length)
            for model in reply.models
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
        if error.code() is grpc.StatusCode.UNAVAILABLE and self._has_tls:
            return Failure(
                f"No server answers at {self._address}, or one of the two does not trust the other's certificate."
            )
        if error.code() is grpc.StatusCode.UNAVAILABLE:
            return Failure(
                f"No server answers at {self._address}: start one with `tailrace serve`, or set TAILRACE_GRPC_TLS_CA if it "
                "asks for TLS."
            )
        return Failure(f"The call to {self._address} failed with {error.code().name}.")


def _channel(address: str) -> grpc.Channel:
    """By the variables that the bridge reads too."""
    authorities, key, cert = _file("CA"), _file("CLIENT_KEY"), _file("CLIENT_CERT")
    if (key is None) != (cert is None) or (authorities is None and cert is not None):
        names = "TAILRACE_GRPC_TLS_CLIENT_CERT and TAILRACE_GRPC_TLS_CLIENT_KEY"
        raise Failure(f"{names} need each other, and TAILRACE_GRPC_TLS_CA.")
    if authorities is None:
        return grpc.insecure_channel(address)
    name = os.environ.get("TAILRACE_GRPC_TLS_SERVER_NAME")
    credentials = grpc.ssl_channel_credentials(authorities, key, cert)
    return grpc.secure_channel(address, credentials, [("grpc.ssl_target_name_override", name)] if name else [])


def _metadata() -> tuple[tuple[str, str], ...]:
    token = os.environ.get("TAILRACE_GRPC_TOKEN")
    if not token:
        return ()
    if not (token.isascii() and token.isprintable() and " " not in token):
        raise Failure("TAILRACE_GRPC_TOKEN may hold printable ASCII characters only, and no space.")
    return (("authorization", f"Bearer {token}"),)


def _file(name: str) -> bytes | None:
    variable = f"TAILRACE_GRPC_TLS_{name}"
    path = os.environ.get(variable)
    if not path:
        return None
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise Failure(f"{variable}={path}: {error.strerror}.") from None


def _request(ask: Ask) -> pb.RunRequest:
    # A field that is None stays unset, and the server takes its default.
    sampling = pb.Sampling(max_tokens=ask.max_tokens, temperature=ask.temperature, seed=ask.seed)
    request = pb.RunRequest(model=ask.model, sampling=sampling)
    if ask.raw:
        request.text = ask.prompt
    else:
        request.chat.turns.extend(pb.ChatTurn(role=role, content=content) for role, content in ask.messages)
    return request
