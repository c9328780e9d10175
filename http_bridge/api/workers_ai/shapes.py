"""Parses one body of /ai/run or of the binding.

The reply has the format of the Responses API if the body has it. Otherwise the model's `shape` in the catalog
determines the format.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from http_bridge.api.adapters import check_adapter
from http_bridge.api.base import DirectJob, IncomingRequest, RunJob, skipped_notice
from http_bridge.api.embeddings.job import EmbeddingJob
from http_bridge.api.openai.choices import OpenAiChoices, copies
from http_bridge.api.responses.requests import is_responses_body, responses_job, responses_writer
from http_bridge.api.strict_writer import strict
from http_bridge.api.workers_ai.batches import batch_job, is_batch_request
from http_bridge.api.workers_ai.choices import ChoicesWriter
from http_bridge.api.workers_ai.embeddings import embedding_job
from http_bridge.api.workers_ai.replies import WorkersAiWriter, bare, bare_zipped, enveloped, enveloped_json
from http_bridge.protocol.run_body import RunBody
from http_bridge.protocol.to_grpc import run_request
from http_bridge.protocol.validation.documents import bad_input, zipped
from tailrace.v1.inference_pb2 import Task

_Document = dict[str, Any]
_CHOICES = "choices"
_MAX_TAGS = 5
_MAX_TAG_LENGTH = 50  # in characters
_RESPONSES = "responses"


@dataclass(frozen=True, slots=True)
class ResultForm:
    """The encoding of results on one route.

    Attributes:
        wrap: Encodes a result.
        wrap_json: Encodes a result that is JSON already, with the same envelope or compression.
    """

    wrap: Callable[[object], bytes]
    wrap_json: Callable[[bytes], bytes]


BARE = ResultForm(bare, bytes)
BARE_ZIPPED = ResultForm(bare_zipped, zipped)
ENVELOPED = ResultForm(enveloped, enveloped_json)


def model_job(incoming: IncomingRequest, document: _Document, model: str, form: ResultForm) -> RunJob | DirectJob:
    """Return the job for a body of /ai/run: a run, a new batch, or a poll of a batch.

    Args:
        incoming: The request.
        document: The body's input, with its `options`.
        model: Name of the model.
        form: The encoding of the route's results.

    Raises:
        ApiError: The request is invalid.
        OutdatedModels: The bridge must first fetch the lists of models from the servers.
    """
    tags = _tags(document.get("options"))
    if not is_batch_request(incoming, document):
        return replace(_run_job(incoming, document, model, form), tags=tags)
    description = incoming.describe(model)
    one = replace(incoming, models_are_current=True)

    def parse_one(request: _Document, request_id: str) -> RunJob | EmbeddingJob:
        if description is not None and description.task == Task.TASK_TEXT_EMBEDDING:
            return embedding_job(one, request, model, bytes)
        return _run_job(replace(one, request_id=request_id), request, model, BARE)

    return batch_job(
        document,
        model=model,
        account=incoming.account,
        wrap=form.wrap_json,
        parse_one=parse_one,
    )


def _tags(options: object) -> tuple[str, ...]:
    """Return the tags in the options. Raises ApiError 400/5006 if there are too many, or if one is too long."""
    tags = options.get("tags") if isinstance(options, dict) else None
    if tags is None:
        return ()
    if not isinstance(tags, list) or len(tags) > _MAX_TAGS:
        raise bad_input(f"'/options/tags' must be an array of at most {_MAX_TAGS} strings")
    if not all(isinstance(tag, str) and len(tag) <= _MAX_TAG_LENGTH for tag in tags):
        raise bad_input(f"'/options/tags' must hold strings of at most {_MAX_TAG_LENGTH} characters")
    return tuple(tags)


def _run_job(incoming: IncomingRequest, document: _Document, model: str, form: ResultForm) -> RunJob:
    if is_responses_body(document):
        return responses_job(incoming, document, wrap=form.wrap, model=model)
    description = incoming.describe(model)
    shape = "" if description is None else description.reply_shape
    if shape == _RESPONSES:
        return _responses_job(incoming, document, model, form)
    if shape == _CHOICES:
        return _choices_job(incoming, document, model, form)
    profile = incoming.profile
    body = incoming.bodies.run(document, model=model)
    check_adapter(incoming, body, model)
    writer = WorkersAiWriter(
        profile,
        form.wrap,
        has_padding=incoming.has_padding,
        is_json=body.json_schema is not None,
        has_tools=bool(body.tools),
        hides_reasoning=body.hides_reasoning,
    )
    request = run_request(body, profile, model=model, account=incoming.account)
    return RunJob(request, strict(writer, body, profile), body.stream, notices=skipped_notice(body))


def _choices_job(incoming: IncomingRequest, document: _Document, model: str, form: ResultForm) -> RunJob:
    # As on OpenAI's routes of an account, an unset max_tokens means 256 in profile 2026, otherwise the sequence length.
    profile = incoming.profile.for_openai(is_at_account=True)
    body = _choices_body(incoming, document, model)
    check_adapter(incoming, body, model)
    writers = tuple(
        ChoicesWriter(
            profile,
            form.wrap_json,
            request_id=incoming.request_id,
            model=model,
            has_padding=incoming.has_padding,
            includes_usage=body.includes_usage,
            hides_reasoning=body.hides_reasoning,
            index=index,
        )
        for index in range(body.num_choices)
    )
    request = run_request(body, profile, model=model, account=incoming.account)
    choices = None
    if len(writers) > 1:
        choices = OpenAiChoices(copies(request, len(writers), has_fixed_seeds=incoming.has_fixed_seeds), writers)
    return RunJob(request, strict(writers[0], body, profile), body.stream, choices, skipped_notice(body))


def _responses_job(incoming: IncomingRequest, document: _Document, model: str, form: ResultForm) -> RunJob:
    """Return the job for a model with `shape = "responses"`: a prompt or messages, answered with a Response object."""
    body = _choices_body(incoming, document, model)
    check_adapter(incoming, body, model)
    profile = incoming.profile.for_openai(is_at_account=True)
    writer = responses_writer(incoming, {**document, "model": model}, body, wrap=form.wrap)
    request = run_request(body, profile, model=model, account=incoming.account)
    return RunJob(request, strict(writer, body, profile), body.stream, notices=skipped_notice(body))


def _choices_body(incoming: IncomingRequest, document: _Document, model: str) -> RunBody:
    """Return the fields of a body with OpenAI's parameters. A `prompt` becomes one user message, except with `raw`."""
    if document.get("messages") is not None:
        return incoming.bodies.chat({**document, "model": model})
    prompt = document.get("prompt")
    if not isinstance(prompt, str) or not prompt or document.get("raw") is True:
        return incoming.bodies.run(document, model=model)
    return incoming.bodies.chat({**document, "model": model, "messages": [{"role": "user", "content": prompt}]})
