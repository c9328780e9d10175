"""Batches of /ai/run and of the binding: requests that are queued together, and for whose results the client polls.

Request                                        Answer

{"requests": [{…}, …]} with queueRequest       {"status": "queued", "request_id": …, "model": …}
{"request_id": …} while requests are open      {"status": "queued" or "running", "request_id": …, "model": …}
{"request_id": …} afterwards                   {"responses": [{"id", "result", "success", "external_reference"}], "usage"}
"""

import asyncio
import contextlib
import json
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import grpc

from http_bridge.api.base import DirectJob, IncomingRequest, RunJob
from http_bridge.api.collected import all_collected
from http_bridge.api.embeddings.job import EmbeddingJob
from http_bridge.api.openai.choices import total
from http_bridge.api.reply_writer import JsonObject, error_message
from http_bridge.batches.batch import Batch, Request, Result
from http_bridge.batches.queue import BatchQueue
from http_bridge.errors import ApiError
from http_bridge.protocol.grpc_errors import rpc_api_error, unknown_model
from http_bridge.protocol.validation.documents import bad_input
from http_bridge.upstream.client import Upstream
from tailrace.v1.inference_pb2 import Priority

_Document = Mapping[str, Any]
# Parses a request of a batch, given the request and its id. The job's writer returns the result without an envelope.
ParseOne = Callable[[dict[str, Any], str], RunJob | EmbeddingJob]
Wrap = Callable[[bytes], bytes]
_REFERENCE = "external_reference"
_INPUTS = ("prompt", "messages", "input", "text", "contexts", "queries", "documents")
_MAX_ID = 256  # longest part of an unknown request_id in an error message, in characters
# Results above this size are joined, and perhaps compressed, on another thread.
_LARGE_BYTES = 1_000_000


def is_batch_request(incoming: IncomingRequest, document: _Document) -> bool:
    """Return True if a request submits or polls a batch. `document`: the body's input, with its `options`."""
    options = document.get("options")
    queues = [document.get("queueRequest"), options.get("queueRequest") if isinstance(options, dict) else None]
    is_queued = True in queues or incoming.query.get("queueRequest", "").lower() in ("true", "1")
    return _is_batch(document, is_queued=is_queued)


def _is_batch(document: _Document, *, is_queued: bool) -> bool:
    has_input = any(document.get(name) is not None for name in _INPUTS)
    return (
        is_queued or document.get("requests") is not None or (document.get("request_id") is not None and not has_input)
    )


def batch_job(document: _Document, *, model: str, account: str, wrap: Wrap, parse_one: ParseOne) -> DirectJob:
    """Return the job that submits or polls a batch.

    Args:
        document: The body. A single request without the list `requests` is a batch of one.
        model: Name of the model.
        account: Account of the request; empty if it has none.
        wrap: Makes the body of the route's reply from the JSON of a result: adds an envelope, or compresses.
        parse_one: Parses one request.

    Raises:
        ApiError: 400/5006 if `request_id` or `requests` is not valid.
    """
    batch_id = document.get("request_id")
    requests = document.get("requests")
    if requests is None and batch_id is not None:
        if not isinstance(batch_id, str):
            raise bad_input("Type mismatch of '/request_id', a string is expected")
        return PollJob(model, account, wrap, batch_id)
    if requests is None:
        requests = [{name: value for name, value in document.items() if name != "queueRequest"}]
    if not isinstance(requests, list) or not requests:
        raise bad_input("'/requests' must be an array with at least one request")
    return SubmitJob(model, account, wrap, requests, parse_one)


@dataclass(frozen=True, slots=True)
class SubmitJob(DirectJob):
    """Queues a batch. If a request of the batch is invalid, only that request fails."""

    model: str
    account: str
    wrap: Wrap
    requests: list[Any]
    parse_one: ParseOne

    async def answer(self, state: Mapping[str, Any]) -> bytes:
        """Queue the batch and return its status, which contains its id.

        Raises:
            ApiError: 400/5006 if batches are switched off, 400/5007 or 400/5028 for an unknown model, 413/3006 for too
                many requests or bytes, 429/3040 for a full queue.
            AioRpcError: No server returned its models.
        """
        upstream: Upstream = state["upstream"]
        queue: BatchQueue = state["batches"]
        queue.check_size(len(self.requests))
        names = [model.name for model in await upstream.list_models()]
        if self.model not in names:
            raise unknown_model(self.model, names)
        requests = await asyncio.to_thread(self._parsed, upstream, queue)
        return self.wrap(_status(queue.submit(requests, account=self.account, model=self.model), "queued"))

    def _parsed(self, upstream: Upstream, queue: BatchQueue) -> list[Request]:
        parsed: list[Request] = []
        num_bytes = 0
        for index, document in enumerate(self.requests):
            parsed.append(self._request(document, index, upstream))
            num_bytes += parsed[-1].size
            # References are replaced with the items of earlier replies, which can be much longer than the body.
            queue.check_size(len(self.requests), num_bytes)
        return parsed

    def _request(self, document: Any, index: int, upstream: Upstream) -> Request:
        if not isinstance(document, dict):
            return Request(b"null", None, bad_input(f"'/requests/{index}' is not an object"))
        reference = _json(document.get(_REFERENCE))
        try:
            # The client polls, so a reply cannot stream.
            job = self.parse_one({**document, "stream": False}, str(uuid.uuid4()))
        except ApiError as error:
            return Request(reference, None, error)
        if isinstance(job, EmbeddingJob):
            return Request(reference, EmbeddingWork(job, upstream))
        num_bytes = len(_json(document))
        for request in job.requests:
            request.priority = Priority.PRIORITY_BATCH
        return Request(reference, RunWork(job, upstream, num_bytes))


@dataclass(frozen=True, slots=True)
class PollJob(DirectJob):
    """Returns the status of a batch, or its results."""

    model: str
    account: str
    wrap: Wrap
    batch_id: str

    async def answer(self, state: Mapping[str, Any]) -> bytes:
        """Return the status or the results. Raises ApiError 404/5006 if this account and model have no such batch."""
        queue: BatchQueue = state["batches"]
        batch = queue.find(self.batch_id, account=self.account, model=self.model)
        if batch is None:
            raise ApiError(
                404,
                5006,
                f"Bad input: Error: there is no batch with the request_id {self.batch_id[:_MAX_ID]!r} for this account and "
                "model, or its results are no longer kept",
            )
        if batch.status != "finished":
            return self.wrap(_status(batch, batch.status))
        batch.was_read = True
        if batch.size < _LARGE_BYTES:
            return self.wrap(_responses(batch))
        return await asyncio.to_thread(lambda: self.wrap(_responses(batch)))


@dataclass(frozen=True, slots=True)
class RunWork:
    """Runs a model for a request of a batch. `num_bytes`: size of its body, parts of which the reply may repeat."""

    job: RunJob
    upstream: Upstream
    num_bytes: int

    @property
    def size(self) -> int:
        """The size of the body or of the gRPC requests in bytes, whichever is larger."""
        return max(self.num_bytes, sum(request.ByteSize() for request in self.job.requests))

    async def run(self, request_id: str, timeout_seconds: float) -> Result:
        """Run the request, with all of its choices at the same time. Raises ApiError if a gRPC call fails."""
        try:
            async with contextlib.AsyncExitStack() as calls:
                events = []
                for index, request in enumerate(self.job.requests):
                    name = f"{request_id}-{index}" if index else request_id
                    run = self.upstream.run(request, request_id=name, timeout_seconds=timeout_seconds)
                    events.append(await calls.enter_async_context(run))
                replies = await all_collected(events)
        except grpc.aio.AioRpcError as error:
            raise rpc_api_error(error, model=self.job.request.model) from error
        choices = self.job.choices
        body = self.job.writer.complete(replies[0]) if choices is None else choices.complete(replies)
        usage = total([reply.completed for reply in replies]).usage
        return Result(body, usage.prompt_tokens, usage.completion_tokens)


@dataclass(frozen=True, slots=True)
class EmbeddingWork:
    """Embeds the texts of a request of a batch."""

    job: EmbeddingJob
    upstream: Upstream

    @property
    def size(self) -> int:
        """The size of the gRPC request in bytes."""
        return self.job.request.ByteSize()

    async def run(self, request_id: str, timeout_seconds: float) -> Result:
        """Embed the texts. Raises ApiError if the gRPC call fails."""
        request = self.job.request
        try:
            response = await self.upstream.embed(request, request_id=request_id, timeout_seconds=timeout_seconds)
        except grpc.aio.AioRpcError as error:
            raise rpc_api_error(error, model=request.model) from error
        body = await asyncio.to_thread(self.job.write, response)
        return Result(body, response.prompt_tokens)


def _status(batch: Batch, status: str) -> bytes:
    return _json({"status": status, "request_id": batch.id, "model": batch.model})


def _responses(batch: Batch) -> bytes:
    # The results are JSON already. They are joined as bytes, because parsing megabytes would delay other streams.
    responses = b",".join(_response(batch, index, request) for index, request in enumerate(batch.requests))
    return b'{"responses":[' + responses + b'],"usage":' + _json(_usage(batch)) + b"}"


def _response(batch: Batch, index: int, request: Request) -> bytes:
    outcome = request.outcome
    reference = b'"%b":%b' % (_REFERENCE.encode(), request.reference)
    if isinstance(outcome, Result):
        return b'{"id":%d,"result":%b,"success":true,%b}' % (index, outcome.body, reference)
    assert outcome is not None
    error = _json({"code": outcome.code, "message": error_message(outcome, f"{batch.id}-{index}")})
    return b'{"id":%d,"result":{},"success":false,%b,"error":%b}' % (index, reference, error)


def _usage(batch: Batch) -> JsonObject:
    results = [request.outcome for request in batch.requests if isinstance(request.outcome, Result)]
    prompt, completion = sum(item.prompt_tokens for item in results), sum(item.completion_tokens for item in results)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _json(payload: object) -> bytes:
    return json.dumps(payload, ensure_ascii=False, separators=(",", ":")).encode()
