"""Implements the InferenceService: validates requests, submits them to the engines, and sends the results.

An unexpected exception ends the call with INTERNAL. The message contains no internals.
"""

import asyncio
import logging
import uuid
from collections.abc import AsyncIterable, AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from inference_server import errors
from inference_server.engine.rate_limit import RateLimit
from inference_server.generation import Event, GenerationRequest
from inference_server.grpc_api.conversion import (
    call_place,
    callable_tools,
    encoded_prompt,
    generation_request,
    model_info,
    response,
)
from inference_server.grpc_api.embedding import check_texts, embed_response, embedder_info, prepared_texts
from inference_server.grpc_api.status import Context, abort
from inference_server.grpc_api.validation import Limits, check, check_input
from inference_server.observability.embed_record import EmbedRecord
from inference_server.observability.metrics import Metrics
from inference_server.observability.run_record import RunRecord
from inference_server.observability.tracing.base import EmbedTrace, NullTracing, RunTrace
from inference_server.settings.server import Settings
from inference_server.text.reasoning.formats import ThoughtState
from inference_server.text.reasoning.reply import ThoughtfulReplyText, with_thoughts
from inference_server.text.tool_calls import with_tool_calls
from tailrace.v1 import inference_pb2 as pb
from tailrace.v1 import inference_pb2_grpc
from tailrace_shared.catalogue.short_names import nearest_name
from tailrace_shared.catalogue.workers_ai import how_to_serve
from tailrace_shared.request_fields import MAX_NAME_LENGTH

if TYPE_CHECKING:  # hosted_embedder imports torch, which takes seconds
    from inference_server.serving.hosted_embedder import HostedEmbedder
    from inference_server.serving.hosted_model import HostedModel

logger = logging.getLogger(__name__)

_GRAMMAR_THREADS = 64
_FEW_VECTORS = 64
_Result = TypeVar("_Result")


class InferenceServicer(inference_pb2_grpc.InferenceServiceServicer):
    """Serves the models in `models`, which is empty until they are loaded.

    Attributes:
        tracing: Creates the trace of each request.
        models: The loaded models by name.
        is_stopping: True once the server is shutting down. New requests are then rejected with SERVER_STOPPING.
        metrics: Prometheus metrics of all requests.
        limits: Limits of requests that do not depend on the model.
    """

    def __init__(self, settings: Settings, tracing: NullTracing) -> None:
        self.tracing = tracing
        self.models: dict[str, HostedModel | HostedEmbedder] = {}
        self.is_stopping = False
        self.metrics = Metrics()
        self.limits = Limits(settings.max_messages, settings.max_schema_depth)
        self._rate_limit = RateLimit(settings.account_requests_per_minute)
        self._write_timeout_seconds = settings.write_timeout_seconds
        self._has_fixed_seed = settings.deterministic
        self._has_fixed_events = settings.deterministic or settings.recordings is not None
        # A thread may wait for seconds while the grammar process compiles a costly grammar. Requests that may have a
        # grammar use these threads, so that they do not delay other requests.
        self._grammar_threads = ThreadPoolExecutor(_GRAMMAR_THREADS, "grammar")

    async def Run(self, request: pb.RunRequest, context: Context) -> None:  # type: ignore[override]
        """Generate a reply and write its events to `context`."""
        request_id = _request_id(context)
        trace = self.tracing.run(request, request_id, context.invocation_metadata() or ())
        is_known, deadline = self.is_known(request.model), context.time_remaining()
        record = RunRecord(self.metrics, request, request_id, is_known=is_known, deadline=deadline)
        try:
            await self.generate(request, context, record, trace)
            record.mark_succeeded()
        except errors.TailraceError as error:
            record.mark_failed(error)
            await abort(context, error)
        except Exception:
            if context.cancelled():  # writing a message failed because the client has cancelled the call
                return
            logger.exception("request %s failed", request_id)
            failure = errors.GenerationFailed("the server failed on this request")
            record.mark_failed(failure)
            await abort(context, failure)
        finally:
            trace.finish(record.outcome)
            record.finish()

    async def generate(self, request: pb.RunRequest, context: Context, record: RunRecord, trace: RunTrace) -> None:
        """Generate the reply of a call of Run, and write its events to `context`.

        Raises:
            TailraceError: The request is refused, or its reply cannot be finished.
        """
        self._rate_limit.take(request.account[:MAX_NAME_LENGTH])
        if (hosted := self.models.get(request.model)) is not None and hosted.task == "generation":
            hosted.engine.check_capacity(
                request.account,
                reject_if_busy=request.reject_if_busy,
                deadline_seconds=context.time_remaining(),
                is_batch=request.priority == pb.PRIORITY_BATCH,
            )
        # Not on the event loop: checking and tokenising a megabyte of turns takes a second.
        remaining = context.time_remaining()
        prepared = await self._off_loop(request, self._prepare, request, record.request_id, remaining)
        model, generation, thoughts = prepared
        tools = callable_tools(request)
        text = model.text(generation, thoughts, shows_calls=bool(tools))
        async with model.submit(generation, text) as reply:
            record.accept()
            trace.accepted()
            await context.send_initial_metadata((("x-request-id", record.request_id),))
            events: AsyncIterator[Event] = reply
            if isinstance(text, ThoughtfulReplyText):
                events = with_thoughts(events, text)
            if tools:
                seed, place = generation.sampling.seed, call_place(request)
                events = with_tool_calls(events, model.tool_format, tools, seed, place)
            await self.send(context, trace.observe(events), request, record, model.prompts.decoder.token_bytes)

    async def send(
        self,
        context: Context,
        events: AsyncIterable[Event],
        request: pb.RunRequest,
        record: RunRecord,
        token_bytes: Callable[[int], bytes],
    ) -> None:
        """Write every event to `context`.

        Raises:
            ClientTooSlow: An event could not be written within the write timeout.
            TailraceError: Raised by `events`.
        """
        clock = asyncio.get_running_loop().time
        try:
            async with asyncio.timeout(None) as limit:
                async for event in events:
                    record.observe(event)
                    limit.reschedule(clock() + self._write_timeout_seconds)
                    await context.write(response(event, request, record.request_id, token_bytes))
                    limit.reschedule(None)
        except TimeoutError:
            seconds = self._write_timeout_seconds
            raise errors.ClientTooSlow(f"the client did not read the reply for {seconds:g} s: it was aborted") from None

    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:
        """Return the models in the order of the catalog. Ends the call with MODEL_NOT_READY until they are loaded."""
        models = self.descriptions()
        if not models:
            await abort(context, errors.ModelNotReady("the models are still being loaded"))
        return pb.ListModelsResponse(models=models)

    def host(self, models: "Mapping[str, HostedModel | HostedEmbedder]") -> None:
        """Start to serve `models`."""
        self.models = dict(models)

    def descriptions(self) -> list[pb.Model]:
        """Return the descriptions of the models, in the order of the catalog; empty until they are loaded."""
        return [embedder_info(each) if each.task == "embedding" else model_info(each) for each in self.models.values()]

    def is_known(self, model: str) -> bool:
        """Return True if this server answers requests for the model."""
        return model in self.models

    async def CountTokens(self, request: pb.CountTokensRequest, context: Context) -> pb.CountTokensResponse:
        """Return the number of tokens of a prompt, and the model's limits."""
        try:
            return await self.count(request)
        except errors.TailraceError as error:
            await abort(context, error)
        except Exception:
            logger.exception("counting tokens failed")
            await abort(context, errors.GenerationFailed("the server failed on this request"))

    async def count(self, request: pb.CountTokensRequest) -> pb.CountTokensResponse:
        """Return the reply of a call of CountTokens. Raises TailraceError if the request is refused."""
        model, count = await asyncio.to_thread(self._count, request)
        return pb.CountTokensResponse(
            prompt_tokens=count,
            context_length=model.context_length,
            max_completion_tokens=model.max_tokens(count) if count <= model.context_length else 0,
        )

    async def Embed(self, request: pb.EmbedRequest, context: Context) -> pb.EmbedResponse:
        """Return one vector for each text."""
        request_id = _request_id(context)
        trace = self.tracing.embed(request, request_id, context.invocation_metadata() or ())
        is_known, deadline = self.is_known(request.model), context.time_remaining()
        record = EmbedRecord(self.metrics, request, request_id, is_known=is_known, deadline=deadline)
        try:
            message = await self.embed(request, context, record, trace)
            record.mark_succeeded()
            return message
        except errors.TailraceError as error:
            record.mark_failed(error)
            await abort(context, error)
        except Exception:
            if context.cancelled():  # writing the metadata failed because the client has cancelled the call
                return pb.EmbedResponse()
            logger.exception("request %s failed", request_id)
            failure = errors.GenerationFailed("the server failed on this request")
            record.mark_failed(failure)
            await abort(context, failure)
        finally:
            trace.finish(record.outcome)
            record.finish()

    async def embed(
        self, request: pb.EmbedRequest, context: Context, record: EmbedRecord, trace: EmbedTrace
    ) -> pb.EmbedResponse:
        """Return the vectors of a call of Embed.

        Raises:
            TailraceError: The request is refused, or the model failed.
        """
        self._rate_limit.take(request.account[:MAX_NAME_LENGTH])
        check_texts(request)
        model = self._embedder(request.model)
        model.check_capacity(request.account, context.time_remaining())
        # Not on the event loop: tokenising a megabyte of texts takes a second.
        prepared = await asyncio.to_thread(prepared_texts, request, model)
        submitted = model.request(prepared, request.account, context.time_remaining())
        async with model.engine.submit(submitted) as job:
            record.accept(prepared.prompt_tokens)
            trace.accepted()
            await context.send_initial_metadata((("x-request-id", record.request_id),))
            try:
                vectors = await job.vectors()
            finally:
                record.start(job.started)
        trace.computed(job.started, prepared.prompt_tokens)
        # Creating a message with 2,048 vectors takes at least 0.04 s (AMD EPYC, Zen 4). On the event loop, it would
        # interrupt all streams for this time.
        convert = partial(embed_response, vectors, prepared.prompt_tokens)
        return await asyncio.to_thread(convert) if len(vectors) > _FEW_VECTORS else convert()

    async def _off_loop(
        self, request: pb.RunRequest, prepare: "Callable[..., _Result]", *arguments: object
    ) -> "_Result":
        """Call `prepare` on another thread, and return its result.

        A request that may have a grammar uses one of the grammar threads.
        """
        threads = self._grammar_threads if request.HasField("response_format") or request.chat.tools else None
        return await asyncio.get_running_loop().run_in_executor(threads, prepare, *arguments)

    def _prepare(
        self, request: pb.RunRequest, request_id: str, deadline_seconds: float | None
    ) -> "tuple[HostedModel, GenerationRequest, ThoughtState]":
        check(request, self.limits)
        model = self._model(request.model)
        prompt = encoded_prompt(request, model)
        generation = generation_request(request, request_id, prompt, model, has_fixed_seed=self._has_fixed_seed)
        # Joined deltas depend on the client's reading speed. Without them, equal replies have equal streams and
        # recordings.
        joins = not self._has_fixed_events
        return model, replace(generation, deadline_seconds=deadline_seconds, joins_deltas=joins), prompt.thoughts

    def _count(self, request: pb.CountTokensRequest) -> "tuple[HostedModel, int]":
        check_input(request, self.limits)
        model = self._model(request.model)
        return model, len(encoded_prompt(request, model).token_ids)

    def _model(self, name: str) -> "HostedModel":
        model = self._hosted(name)
        if model.task != "generation":
            raise errors.WrongTask(f"the model {name} embeds text: call Embed")
        return model

    def _embedder(self, name: str) -> "HostedEmbedder":
        model = self._hosted(name)
        if model.task != "embedding":
            raise errors.WrongTask(f"the model {name} generates text: call Run")
        return model

    def _hosted(self, name: str) -> "HostedModel | HostedEmbedder":
        if self.is_stopping:
            raise errors.ServerStopping("this server is stopping")
        if not self.models:
            raise errors.ModelNotReady("the models are still being loaded")
        if name not in self.models:
            near = nearest_name(name, self.models)
            meant = f"did you mean {near}? " if near else ""
            step = f"{how_to_serve(name)}; " if how_to_serve(name) else ""
            the = "The" if meant and not step else "the"  # after the question a sentence begins
            raise errors.UnknownModel(
                f"there is no model {name!r} here; {meant}{step}{the} models are {', '.join(self.models)}"
            )
        return self.models[name]


def _request_id(context: Context) -> str:
    """Return the client's `x-request-id`, truncated to 128 characters, or a new UUID."""
    for key, value in context.invocation_metadata() or ():
        if key == "x-request-id" and isinstance(value, str) and value:
            return value[:128]
    return str(uuid.uuid4())
