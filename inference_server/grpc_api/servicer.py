"""InferenceService: the contract's messages to and from the engine's.

No policy is decided here. Anything unforeseen becomes INTERNAL with a sentence that tells nothing of the inside.
"""

import asyncio
import logging
import uuid
from collections.abc import AsyncIterable
from dataclasses import replace
from typing import TYPE_CHECKING

from inference_server import errors
from inference_server.engine.rate_limit import RateLimit
from inference_server.engine.sequence import (
    Candidate,
    Completed,
    Delta,
    Event,
    FinishReason,
    GenerationRequest,
    Started,
    TokenLogprob,
)
from inference_server.grpc_api import conversion as requests
from inference_server.grpc_api import validation as checks
from inference_server.grpc_api.status import Context, abort, duration
from inference_server.observability.metrics import Metrics
from inference_server.observability.run_record import RunRecord
from inference_server.observability.tracing.base import Tracing
from inference_server.settings import Settings
from inference_server.text.token_bytes import TokenBytes
from inference_server.text.tool_call_stream import with_tool_calls
from tailrace.v1 import inference_pb2 as pb
from tailrace.v1 import inference_pb2_grpc
from tailrace_shared.request_fields import MAX_NAME_LENGTH

if TYPE_CHECKING:  # it imports torch, which takes seconds
    from inference_server.serving.hosted_model import HostedModel

logger = logging.getLogger(__name__)

_FINISH_REASON = {
    FinishReason.STOP: pb.FINISH_REASON_STOP,
    FinishReason.LENGTH: pb.FINISH_REASON_LENGTH,
    FinishReason.TIME_LIMIT: pb.FINISH_REASON_TIME_LIMIT,
    FinishReason.TOOL_CALLS: pb.FINISH_REASON_TOOL_CALLS,
}


class InferenceServicer(inference_pb2_grpc.InferenceServiceServicer):
    """Answers with whatever `models` holds: it is empty until the models are loaded."""

    def __init__(self, settings: Settings, tracing: Tracing) -> None:
        self.tracing = tracing
        self.models: dict[str, HostedModel] = {}
        self.is_stopping = False
        self.metrics = Metrics()
        self._limits = checks.Limits(settings.max_messages, settings.max_schema_depth)
        self._rate_limit = RateLimit(settings.account_requests_per_minute)
        self._write_timeout_seconds = settings.write_timeout_seconds

    async def Run(self, request: pb.RunRequest, context: Context) -> None:  # type: ignore[override]
        request_id = _request_id(context)
        trace = self.tracing.run(request, request_id, context.invocation_metadata() or ())
        is_known, deadline = request.model in self.models, context.time_remaining()
        record = RunRecord(self.metrics, request, request_id, is_known=is_known, deadline=deadline)
        try:
            self._rate_limit.take(request.account[:MAX_NAME_LENGTH])
            if (hosted := self.models.get(request.model)) is not None:
                hosted.engine.check_capacity(
                    request.account, reject_if_busy=request.reject_if_busy, deadline_seconds=context.time_remaining()
                )
            # Off the event loop: a megabyte of turns takes a second to check and tokenise.
            model, generation = await asyncio.to_thread(self._prepare, request, request_id, context.time_remaining())
            tools = requests.callable_tools(request)
            async with model.submit(generation, shows_calls=bool(tools)) as reply:
                record.accept()
                trace.accepted()
                await context.send_initial_metadata((("x-request-id", request_id),))
                events = with_tool_calls(reply, model.tool_format, tools, generation.sampling.seed) if tools else reply
                await self._send(context, trace.watched(events), request, record, model.prompts.token_bytes)
            record.succeed()
        except errors.TailraceError as error:
            record.fail(error)
            await abort(context, error)
        except Exception:
            if context.cancelled():  # a message met the caller's cancel half way: nobody is left to be told
                return
            logger.exception("request %s failed", request_id)
            failure = errors.GenerationFailed("the server failed on this request")
            record.fail(failure)
            await abort(context, failure)
        finally:
            trace.end(record.outcome)
            record.end()

    async def _send(
        self,
        context: Context,
        events: AsyncIterable[Event],
        request: pb.RunRequest,
        record: RunRecord,
        token_bytes: TokenBytes,
    ) -> None:
        """Write every event. Raises ClientTooSlow when one cannot be written for too long, and what the events raise."""
        clock = asyncio.get_running_loop().time
        try:
            async with asyncio.timeout(None) as limit:
                async for event in events:
                    record.tell(event)
                    limit.reschedule(clock() + self._write_timeout_seconds)
                    await context.write(_response(event, request, record.request_id, token_bytes))
                    limit.reschedule(None)
        except TimeoutError:
            seconds = self._write_timeout_seconds
            raise errors.ClientTooSlow(f"the reply was not read for {seconds:g} s and was given up") from None

    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:
        if not self.models:
            await abort(context, errors.ModelNotReady("the models are still being loaded"))
        return pb.ListModelsResponse(models=[_model(model) for model in self.models.values()])

    async def CountTokens(self, request: pb.CountTokensRequest, context: Context) -> pb.CountTokensResponse:
        try:
            model, count = await asyncio.to_thread(self._count, request)
        except errors.TailraceError as error:
            await abort(context, error)
        except Exception:
            logger.exception("counting tokens failed")
            await abort(context, errors.GenerationFailed("the server failed on this request"))
        return pb.CountTokensResponse(
            prompt_tokens=count,
            context_length=model.context_length,
            max_completion_tokens=model.max_tokens(count) if count <= model.context_length else 0,
        )

    def _prepare(
        self, request: pb.RunRequest, request_id: str, deadline_seconds: float | None
    ) -> "tuple[HostedModel, GenerationRequest]":
        checks.check(request, self._limits)
        model = self._model(request.model)
        prompt = requests.prompt_ids(request, model)
        generation = requests.generation_request(request, request_id, prompt, model)
        return model, replace(generation, deadline_seconds=deadline_seconds)

    def _count(self, request: pb.CountTokensRequest) -> "tuple[HostedModel, int]":
        checks.check_input(request, self._limits)
        model = self._model(request.model)
        return model, len(requests.prompt_ids(request, model))

    def _model(self, name: str) -> "HostedModel":
        if self.is_stopping:
            raise errors.ServerStopping("this server is stopping")
        if not self.models:
            raise errors.ModelNotReady("the models are still being loaded")
        if name not in self.models:
            raise errors.UnknownModel(f"there is no model {name!r} here; there are {', '.join(self.models)}")
        return self.models[name]


def _request_id(context: Context) -> str:
    """The caller's `x-request-id`, cut to 128 characters, or a new UUID."""
    for key, value in context.invocation_metadata() or ():
        if key == "x-request-id" and isinstance(value, str) and value:
            return value[:128]
    return str(uuid.uuid4())


def _response(event: Event, request: pb.RunRequest, request_id: str, token_bytes: TokenBytes) -> pb.RunResponse:
    match event:
        case Started():
            return pb.RunResponse(
                started=pb.Started(
                    request_id=request_id,
                    model=request.model,
                    prompt_tokens=event.prompt_tokens,
                    seed=event.seed,
                )
            )
        case Delta():
            # Filled in place, a third of the time that constructors take: this is done for every token.
            response = pb.RunResponse()
            delta = response.delta
            delta.text = event.text
            delta.tokens = event.num_tokens
            if event.tool_calls:
                delta.tool_calls.extend(
                    pb.ToolCall(id=call.id, name=call.name, arguments=call.arguments) for call in event.tool_calls
                )
            if event.logprobs:
                delta.logprobs.extend(_token_logprob(logprob, token_bytes) for logprob in event.logprobs)
            return response
        case Completed():
            return pb.RunResponse(completed=_completed(event))
    raise TypeError(f"{event} is no event of a stream")


def _completed(event: Completed) -> pb.Completed:
    return pb.Completed(
        finish_reason=_FINISH_REASON[event.finish_reason],
        stop_string=event.stop_string,
        usage=pb.Usage(
            prompt_tokens=event.usage.prompt_tokens,
            completion_tokens=event.usage.completion_tokens,
            cached_tokens=event.usage.cached_tokens,
        ),
        timings=pb.Timings(
            queue=duration(event.timings.queue),
            prefill=duration(event.timings.prefill),
            decode=duration(event.timings.decode),
        ),
    )


def _token_logprob(logprob: TokenLogprob, token_bytes: TokenBytes) -> pb.TokenLogprob:
    def candidate(item: Candidate) -> pb.Candidate:
        return pb.Candidate(text=token_bytes(item.token_id), logprob=item.logprob)

    return pb.TokenLogprob(token=candidate(logprob.token), top=[candidate(item) for item in logprob.top])


def _model(model: "HostedModel") -> pb.Model:
    return pb.Model(
        name=model.entry.name,
        description=model.entry.description,
        context_length=model.context_length,
        sequence_length=model.entry.sequence_length,
        weights=str(model.entry.weights),
        precision=model.precision,
        window=model.window,
        tool_format=model.tool_format,
        stands_in=model.entry.stands_in,
    )
