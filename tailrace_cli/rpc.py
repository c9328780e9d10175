"""Client of the inference server: gRPC, without the bridge."""

from collections.abc import Iterator, Sequence

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2
from grpc_status import rpc_status  # type: ignore[import-untyped]

from tailrace.v1 import inference_pb2 as pb
from tailrace.v1.inference_pb2_grpc import InferenceServiceStub
from tailrace_cli.client import ModelLine, Piece, ReplyStats, Request, unknown_model
from tailrace_cli.environment import variable
from tailrace_cli.errors import Failure, Refusal, TooLong

_LIST_SECONDS = 10.0


class GrpcClient:
    """A client of one inference server, with TLS and a token if the environment has them."""

    def __init__(self, address: str, account: str = "") -> None:
        """Set up the channel without opening a connection.

        Args:
            address: The server as host:port.
            account: Account of the requests; empty: none.

        Raises:
            Failure: A TAILRACE_GRPC_* variable is invalid, or a file that it names cannot be read.
        """
        self._address = address
        self._account = account
        self._has_tls = bool(variable("TAILRACE_GRPC_TLS_CA"))
        self._stub = InferenceServiceStub(_channel(address))
        self._metadata = _metadata()

    def stream(self, request: Request, stats: ReplyStats) -> Iterator[Piece]:
        """Yield the reply piece by piece; see Client."""
        call = self._stub.Run(_run_request(request, self._account), metadata=self._metadata)
        try:
            for event in call:
                if event.delta.reasoning:
                    yield Piece(event.delta.reasoning, is_thinking=True)
                if event.delta.text:
                    yield Piece(event.delta.text)
                if event.HasField("completed"):
                    usage = event.completed.usage
                    stats.prompt_tokens, stats.completion_tokens = usage.prompt_tokens, usage.completion_tokens
                    reason = pb.FinishReason.Name(event.completed.finish_reason)
                    stats.finish = reason.removeprefix("FINISH_REASON_").lower()
        except grpc.RpcError as error:
            raise self._refusal(error, request.model) from None
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

    def _refusal(self, error: grpc.RpcError, model: str) -> Failure | Refusal:
        """Return the error of a failed run for the user. `model`: the model of the request."""
        reason = _details(error)[0].reason
        if reason in ("UNKNOWN_MODEL", "WRONG_TASK"):
            return unknown_model(self, model)
        explained = self._explain(error)
        return TooLong(str(explained)) if reason in ("PROMPT_TOO_LONG", "NO_ROOM_FOR_REPLY") else explained

    def _explain(self, error: grpc.RpcError) -> Failure | Refusal:
        """Return the error for the user: the server's own sentence, if it sent one."""
        if not isinstance(error, grpc.Call):
            return Failure(f"The call to {self._address} failed.")
        info, bad_request = _details(error)
        if bad_request.field_violations:
            wrong = "; ".join(
                f"{violation.field.removeprefix('sampling.')} {violation.description}"
                for violation in bad_request.field_violations
            )
            return Refusal(f"The server refused the request: {wrong}.")
        if info.reason == "UNAUTHENTICATED":
            return Refusal("The server requires a valid token: set TAILRACE_GRPC_TOKEN.")
        if info.reason:
            sentence = (error.details() or info.reason).rstrip(".")
            return Refusal(f"{sentence[0].upper()}{sentence[1:]}.")
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


def _details(error: grpc.RpcError) -> tuple[error_details_pb2.ErrorInfo, error_details_pb2.BadRequest]:
    """Return the reason and the wrong fields of a failed call; both are empty if the status has none."""
    info, bad_request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    status = rpc_status.from_call(error) if isinstance(error, grpc.Call) else None
    details: Sequence[any_pb2.Any] = status.details if status else ()
    for packed in details:
        packed.Unpack(info)
        packed.Unpack(bad_request)
    return info, bad_request


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


def _run_request(request: Request, account: str) -> pb.RunRequest:
    sampling = pb.Sampling(stop=request.stop)
    for name, value in request.sampling.items():
        setattr(sampling, name, value)
    message = pb.RunRequest(model=request.model, sampling=sampling, account=account)
    if request.schema is not None:
        message.response_format.json_schema = request.schema
    if request.raw:
        message.text = request.prompt
    else:
        message.chat.turns.extend(pb.ChatTurn(role=role, content=content) for role, content in request.messages)
        message.chat.continue_final_turn = request.continues
    return message
