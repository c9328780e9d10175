"""Implements the InferenceService with recordings: replays recorded replies, and records those that the models compute.

- "replay": no model is loaded. A request without a recording is refused with NOT_RECORDED.
- "auto": a request without a recording is computed, and its complete reply is recorded.
- "record": the first of several equal requests to this process is computed, and its reply replaces an existing
  recording. The later requests get this recording, so that clients see the same replies as in a replay.
"""

import asyncio
import logging
import shlex
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from inference_server import errors
from inference_server.generation import Event
from inference_server.grpc_api.embedding import check_texts
from inference_server.grpc_api.recordings import canonical
from inference_server.grpc_api.recordings.canonical import METHODS, JsonObject, Request
from inference_server.grpc_api.recordings.difference import first_difference, nearest
from inference_server.grpc_api.recordings.folder import RecordingsFolder
from inference_server.grpc_api.recordings.recording import Recording
from inference_server.grpc_api.recordings.refusal_json import REFUSALS, is_lasting, refusal_json, refusal_of_json
from inference_server.grpc_api.recordings.reply_json import Reply
from inference_server.grpc_api.servicer import InferenceServicer
from inference_server.grpc_api.status import Context
from inference_server.grpc_api.validation import check, check_input
from inference_server.observability.embed_record import EmbedRecord
from inference_server.observability.run_record import RunRecord
from inference_server.observability.tracing.base import EmbedTrace, NullTracing, RunTrace
from inference_server.settings.server import Settings
from tailrace.v1 import inference_pb2 as pb

if TYPE_CHECKING:  # hosted_embedder imports torch, which takes seconds
    from inference_server.serving.hosted_embedder import HostedEmbedder
    from inference_server.serving.hosted_model import HostedModel

logger = logging.getLogger(__name__)


class RecordingServicer(InferenceServicer):
    """Replays the recordings of one folder, and adds to them unless the mode is "replay".

    Attributes:
        folder: The recordings.
    """

    def __init__(self, settings: Settings, tracing: NullTracing, folder: RecordingsFolder) -> None:
        """Create the servicer. `settings.recordings` must be set; `folder` contains the recordings of that path."""
        super().__init__(settings, tracing)
        self.folder = folder
        self._mode = settings.recordings_mode
        self._command = _recording_command(settings)
        self._recorded_now: set[str] = set()  # keys of the recordings that this process has written
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def host(self, models: "Mapping[str, HostedModel | HostedEmbedder]") -> None:
        """Start to serve `models`, and add their descriptions to the folder.

        Raises:
            ConfigurationError: The folder's models.json cannot be written.
        """
        super().host(models)
        self.folder.add_models(super().descriptions())

    def descriptions(self) -> list[pb.Model]:
        """Return the descriptions of the loaded models, or in the mode "replay" those in the folder."""
        return list(self.folder.models.values()) if self._mode == "replay" else super().descriptions()

    def is_known(self, model: str) -> bool:
        """Return True if the model is loaded, or in the mode "replay" if the folder describes it."""
        return model in self.folder.models if self._mode == "replay" else super().is_known(model)

    async def generate(self, request: pb.RunRequest, context: Context, record: RunRecord, trace: RunTrace) -> None:
        """Replay or record the reply of a call of Run. See InferenceServicer.generate."""
        known = await asyncio.to_thread(self._canonical, request)
        if known is None:
            return await super().generate(request, context, record, trace)
        async with self._turn(known.key):
            recording = await self._found(known)
            if recording is None:
                written = _WrittenMessages(context)
                try:
                    await super().generate(request, written, record, trace)  # type: ignore[arg-type]
                except REFUSALS as error:
                    if is_lasting(error):
                        await self._save(known, [], refusal_json(error))
                    raise
                return await self._save(known, written.messages)
        if recording.refusal is not None:
            raise refusal_of_json(recording.refusal)
        record.accept()
        trace.accepted()
        await context.send_initial_metadata((("x-request-id", record.request_id),))
        events = trace.observe(_in_turn(recording))
        await self.send(context, events, request, record, recording.token_bytes())

    async def embed(
        self, request: pb.EmbedRequest, context: Context, record: EmbedRecord, trace: EmbedTrace
    ) -> pb.EmbedResponse:
        """Replay or record the vectors of a call of Embed. See InferenceServicer.embed."""
        known = await asyncio.to_thread(self._canonical, request)
        if known is None:
            return await super().embed(request, context, record, trace)
        async with self._turn(known.key):
            recording = await self._found(known)
            if recording is None:
                message = await super().embed(request, context, record, trace)
                await self._save(known, [message])
                return message
        (reply,) = recording.reply
        assert isinstance(reply, pb.EmbedResponse)
        record.accept(reply.prompt_tokens)
        trace.accepted()
        await context.send_initial_metadata((("x-request-id", record.request_id),))
        record.start(started := time.monotonic())
        trace.computed(started, reply.prompt_tokens)
        return reply

    async def count(self, request: pb.CountTokensRequest) -> pb.CountTokensResponse:
        """Replay or record the reply of a call of CountTokens. See InferenceServicer.count."""
        known = await asyncio.to_thread(self._canonical, request)
        if known is None:
            return await super().count(request)
        async with self._turn(known.key):
            recording = await self._found(known)
            if recording is None:
                message = await super().count(request)
                await self._save(known, [message])
                return message
        (reply,) = recording.reply
        assert isinstance(reply, pb.CountTokensResponse)
        return reply

    def _canonical(self, request: Request) -> "_Known | None":
        """Return a checked request with its canonical form.

        Returns None for a request that fails a check in the modes "record" and "auto": InferenceServicer reports its
        error.

        Raises:
            TailraceError: The request fails a check in the mode "replay".
        """
        try:
            self._check(request)
        except errors.TailraceError:
            if self._mode == "replay":
                raise
            return None
        return _Known(METHODS[type(request)], request, self.folder.models[request.model].sampling_defaults)

    def _check(self, request: Request) -> None:
        if isinstance(request, pb.RunRequest):
            check(request, self.limits)
        elif isinstance(request, pb.CountTokensRequest):
            check_input(request, self.limits)
        else:
            check_texts(request)
        if self.is_stopping:
            raise errors.ServerStopping("this server is stopping")
        if not self.is_known(request.model):
            raise errors.UnknownModel(
                f"the recordings in {self.folder.path} have no model {request.model!r}; {self._command} records it; "
                f"their models are {', '.join(self.folder.models)}"
            )
        embeds = self.folder.models[request.model].task == pb.TASK_TEXT_EMBEDDING
        if embeds != isinstance(request, pb.EmbedRequest):
            used, right = ("embeds", "Embed") if embeds else ("generates", "Run")
            raise errors.WrongTask(f"the model {request.model} {used} text: call {right}")

    def _turn(self, key: str) -> AbstractAsyncContextManager[None]:
        """Return a context that equal requests enter one after the other. It has no effect in the mode "replay"."""
        if self._mode == "replay":
            return nullcontext()
        return self._turns.setdefault(key, asyncio.Lock())

    async def _found(self, known: "_Known") -> Recording | None:
        """Return the recording to replay, or None if the reply must be computed and recorded.

        Raises:
            NotRecorded: The mode is "replay", and the request has no recording.
        """
        recording = None
        if self._mode != "record" or known.key in self._recorded_now:
            recording = self.folder.find(known.key)
        if recording is None and self._mode == "replay":
            raise await asyncio.to_thread(self._not_recorded, known)
        return recording

    def _not_recorded(self, known: "_Known") -> errors.NotRecorded:
        recorded = self.folder.of_method(known.method)
        index = nearest(known.request, (each.request for each in recorded))
        if index is None:
            return errors.NotRecorded(str(self.folder.path), self._command, known.method)
        found = recorded[index]
        difference = first_difference(known.request, found.request)
        return errors.NotRecorded(
            str(self.folder.path),
            self._command,
            known.method,
            nearest=self.folder.name_of(found),
            field=difference.field,
            requested=difference.requested,
            recorded=difference.recorded,
        )

    async def _save(self, known: "_Known", messages: list[Any], refusal: JsonObject | None = None) -> None:
        """Record a reply if it is complete, or a refusal. If the file cannot be written, the error is only logged."""
        is_complete = known.method != "Run" or (messages and messages[-1].HasField("completed"))
        if not is_complete and refusal is None:
            return
        recording = Recording(known.method, known.request, messages, refusal)
        try:
            name = await asyncio.shield(asyncio.to_thread(self.folder.save, recording))
        except OSError as error:
            logger.error("a reply could not be recorded in %s: %s", self.folder.path, error.strerror)
            return
        self._recorded_now.add(known.key)
        logger.info("recorded %s", name)


class _Known:
    """A valid request: its method, its canonical form and the hash of both."""

    def __init__(self, method: str, request: Request, defaults: pb.Sampling) -> None:
        self.method = method
        self.request: JsonObject = canonical.canonical(request, defaults)
        self.key = canonical.key(method, self.request)


class _WrittenMessages:
    """Wraps the context of a call, and keeps the messages that are written to it."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self.messages: list[Reply] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    async def write(self, message: pb.RunResponse) -> None:
        """Write a message, and keep it if no error occurs."""
        await self._context.write(message)
        self.messages.append(message)


async def _in_turn(recording: Recording) -> AsyncIterator[Event]:
    """Yield the recorded events. Other tasks, such as a cancellation, run between them."""
    for event in recording.events():
        await asyncio.sleep(0)
        yield event


def _recording_command(settings: Settings) -> str:
    """Return the shell command that starts a server which records missing replies."""
    assert settings.recordings is not None
    models = [] if settings.models is None else [name.strip() for name in settings.models.split(",")]
    options = ["--deterministic"] if settings.deterministic else []
    folder = str(settings.recordings)
    return shlex.join(["tailrace", "serve", *models, *options, "--record", folder, "--replay", folder])
