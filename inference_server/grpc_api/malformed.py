"""Refuses requests whose bytes are no message: gRPC itself would tell the caller Python's exception, as UNKNOWN.

Knows how a call's request is parsed; knows nothing of which requests there are.
"""

from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import DecodeError

from inference_server.errors import FieldViolation, InvalidField
from inference_server.grpc_api.status import Context, abort

# A class that takes arguments in its stubs alone.
_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
_MALFORMED = object()


class Parsing(grpc.aio.ServerInterceptor):
    """For methods with one request that are coroutines: those that yield their replies are left as they are."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable["_Handler | None"]],
        details: grpc.HandlerCallDetails,
    ) -> "_Handler | None":
        handler: Any = await continuation(details)
        if handler is None or handler.request_streaming or handler.request_deserializer is None:
            return handler  # type: ignore[no-any-return]
        parse = _parsing(handler.request_deserializer)
        if handler.unary_stream:
            run = _refusing_malformed(handler.unary_stream)
            return grpc.unary_stream_rpc_method_handler(run, parse, handler.response_serializer)
        run = _refusing_malformed(handler.unary_unary)
        return grpc.unary_unary_rpc_method_handler(run, parse, handler.response_serializer)


def _parsing(parse: Callable[[bytes], object]) -> Callable[[bytes], object]:
    def parsed(data: bytes) -> object:
        try:
            return parse(data)
        except DecodeError:
            return _MALFORMED

    return parsed


def _refusing_malformed(answer: Callable[[Any, Context], Awaitable[object]]) -> Any:
    async def answer_or_refuse(request: object, context: Context) -> object:
        if request is _MALFORMED:
            await abort(
                context, InvalidField(FieldViolation("the request", "cannot be read: it is no message of this method"))
            )
        return await answer(request, context)

    return answer_or_refuse
