"""Rejects requests that are not valid protobuf. gRPC itself would send Python's exception to the client, as UNKNOWN.

Does not depend on the types of the messages.
"""

from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import DecodeError

from inference_server.errors import FieldViolation, InvalidField
from inference_server.grpc_api.status import Context, abort

# Quoted, because the class is generic in its type stubs only, not at run time.
_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
_MALFORMED = object()


class Parsing(grpc.aio.ServerInterceptor):
    """Interceptor that rejects malformed requests of methods with a single request.

    The implementations of these methods must be coroutines that return or write their replies, not async generators.
    Methods with a stream of requests are not changed.
    """

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable["_Handler | None"]],
        details: grpc.HandlerCallDetails,
    ) -> "_Handler | None":
        """Return the method's handler, wrapped so that it rejects malformed requests."""
        handler: Any = await continuation(details)
        if handler is None or handler.request_streaming or handler.request_deserializer is None:
            return handler  # type: ignore[no-any-return]
        parse = _parsing(handler.request_deserializer)
        if handler.unary_stream:
            run = _rejecting_malformed(handler.unary_stream)
            return grpc.unary_stream_rpc_method_handler(run, parse, handler.response_serializer)
        run = _rejecting_malformed(handler.unary_unary)
        return grpc.unary_unary_rpc_method_handler(run, parse, handler.response_serializer)


def _parsing(parse: Callable[[bytes], object]) -> Callable[[bytes], object]:
    def parsed(data: bytes) -> object:
        try:
            return parse(data)
        except DecodeError:
            return _MALFORMED

    return parsed


def _rejecting_malformed(answer: Callable[[Any, Context], Awaitable[object]]) -> Any:
    async def answer_or_reject(request: object, context: Context) -> object:
        if request is _MALFORMED:
            await abort(
                context,
                InvalidField(
                    FieldViolation("the request", "cannot be parsed: its bytes are not a message of this method")
                ),
            )
        return await answer(request, context)

    return answer_or_reject
