"""Client of the inference server: gRPC, without the bridge."""

from collections.abc import Iterator

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status  # type: ignore[import-untyped]

from tailrace.v1 import inference_pb2 as pb
from tailrace.v1.inference_pb2_grpc import InferenceServiceStub
from tailrace_cli.client import ModelLine, ReplyStats, Request
from tailrace_cli.environment import variable
from tailrace_cli.errors import Failure, Refusal

_LIST_SECONDS = 10.0


class GrpcClient:
    """A client of one inference server, with TLS and a token if the environment has them."""

    def __init__(self, address: str) -> None:
        """Set up the channel without opening a connection.

        Args:
            address: The server as host:port.

        Raises:
            Failure: A TAILRACE_GRPC_* variable is invalid, or a file that it names cannot be read.
        """
        self._address = address
        self._has_tls = bool(variable("TAILRACE_GRPC_TLS_CA"))
        self._stub = InferenceServiceStub(_channel(address))
        self._metadata = _metadata()

    def stream(self, request: Request, stats: ReplyStats) -> Iterator[str]:
        """Yield the reply's text piece by piece; see Client."""
        call = self._stub.Run(_run_request(request), metadata=self._metadata)
        try:
            for event in call:
                if event.delta.text:
                    yield event.delta.text
                if event.HasField("completed"):
                    usage = event.completed.usage
                    stats.prompt_tokens, stats.completion_tokens = usage.prompt_tokens, usage.completion_tokens
        except grpc.RpcError as error:
            raise self._explain(error) from None
        finally:
            call.cancel()

    def models(self) -> list[ModelLine]:
        """Return the models that the server lists. Waits 10 s at most."""
        try:
            reply = self._stub.ListModels(pb.ListModelsRequest(), metadata=self._metadata, timeout=_LIST_SECONDS)
        except grpc.RpcError as error:
            raise self._explain(error) from None
        return [
            ModelLine(
                model.name,
                model.description,
                model.context_length,
                model.sequence_length,
                model.dimensions,
                model.weights,
                model.precision,
            )
            for model in reply.models
        ]

    def _explain(self, error: grpc.RpcError) -> Failure | Refusal:
        """Return the error for the user, with the server's own reason if the status has one."""
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
                f"No server answers at {self._address}, or one side does not trust the certificate of the other."
            )
        if error.code() is grpc.StatusCode.UNAVAILABLE:
            return Failure(
                f"No server answers at {self._address}. Start one with `tailrace serve`, or set TAILRACE_GRPC_TLS_CA if it "
                "requires TLS."
            )
        return Failure(f"The call to {self._address} failed with {error.code().name}.")


def _channel(address: str) -> grpc.Channel:
    """Return a channel with the TLS settings of the environment; the bridge reads the same variables."""
    authorities, key, cert = _file("CA"), _file("CLIENT_KEY"), _file("CLIENT_CERT")
    if (key is None) != (cert is None) or (authorities is None and cert is not None):
        names = "TAILRACE_GRPC_TLS_CLIENT_CERT and TAILRACE_GRPC_TLS_CLIENT_KEY"
        raise Failure(f"{names} must be set together, with TAILRACE_GRPC_TLS_CA.")
    if authorities is None:
        return grpc.insecure_channel(address)
    name = variable("TAILRACE_GRPC_TLS_SERVER_NAME")
    credentials = grpc.ssl_channel_credentials(authorities, key, cert)
    return grpc.secure_channel(address, credentials, [("grpc.ssl_target_name_override", name)] if name else [])


def _metadata() -> tuple[tuple[str, str], ...]:
    """Return the metadata of each call: the bearer token of TAILRACE_GRPC_TOKEN, if it is set."""
    token = variable("TAILRACE_GRPC_TOKEN")
    if not token:
        return ()
    if not (token.isascii() and token.isprintable() and " " not in token):
        raise Failure("TAILRACE_GRPC_TOKEN may contain printable ASCII characters only, without spaces.")
    return (("authorization", f"Bearer {token}"),)


def _file(name: str) -> bytes | None:
    """Return the content of the file that TAILRACE_GRPC_TLS_<name> names, or None if the variable is not set."""
    variable_name = f"TAILRACE_GRPC_TLS_{name}"
    path = variable(variable_name)
    if not path:
        return None
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise Failure(f"{variable_name}={path}: {error.strerror}.") from None


def _run_request(request: Request) -> pb.RunRequest:
    # protobuf leaves a field unset that is None here, and the server then applies its default.
    sampling = pb.Sampling(
        max_tokens=request.max_tokens,
        temperature=request.temperature,
        top_p=request.top_p,
        seed=request.seed,
        stop=request.stop,
    )
    message = pb.RunRequest(model=request.model, sampling=sampling)
    if request.schema is not None:
        message.response_format.json_schema = request.schema
    if request.raw:
        message.text = request.prompt
    else:
        message.chat.turns.extend(pb.ChatTurn(role=role, content=content) for role, content in request.messages)
    return message
