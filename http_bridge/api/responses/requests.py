"""Parses the requests of /v1/responses, and the bodies of /ai/run that have the same form."""

import json
import logging
from collections.abc import Callable, Mapping
from typing import Any

from http_bridge.api.base import IncomingRequest, RunJob, check_model_name
from http_bridge.api.responses.errors import ResponsesErrors
from http_bridge.api.responses.items import Conversation
from http_bridge.api.responses.response_object import Request, request_fields
from http_bridge.api.responses.tools import Toolbox, choose
from http_bridge.api.responses.writer import ResponsesWriter
from http_bridge.api.workers_ai.replies import json_bytes
from http_bridge.protocol.to_grpc import run_request
from http_bridge.protocol.validation import bad_input
from tailrace.v1 import inference_pb2 as pb

Document = Mapping[str, Any]

_LOGPROBS = "message.output_text.logprobs"
_SEALED_THOUGHTS = "reasoning.encrypted_content"
# OpenAI's highest effort has no equal in inference.proto.
_EFFORTS = {"max": "xhigh"}
# Fields that need stored responses, or other services of OpenAI.
_REFUSED: Mapping[str, str] = {
    "previous_response_id": "is not supported, because responses are not stored: send the conversation as input",
    "conversation": "is not supported, because conversations are not stored: send the conversation as input",
    "prompt": "is not supported, because prompts are not stored: send instructions and input",
    "context_management": "is not supported: the client must shorten the conversation",
    "moderation": "is not supported: no model here moderates",
}
_MUST_BE_FALSE: Mapping[str, str] = {
    "store": "must be false, because responses are not stored",
    "background": "must be false, because responses are not stored: use stream for a long reply",
}
logger = logging.getLogger(__name__)


class ResponsesParser:
    """Parses requests of OpenAI's Responses API."""

    errors = ResponsesErrors()

    def parse(self, incoming: IncomingRequest) -> RunJob:
        """Return the parsed request. Raises ApiError if the request is invalid."""
        document = incoming.document()
        return responses_job(incoming, document, wrap=json_bytes)


def is_responses_body(document: Document) -> bool:
    """Return True if a body of /ai/run has the form of the Responses API: `input`, a text or items, and no prompt."""
    if document.get("prompt") is not None or document.get("messages") is not None:
        return False
    return isinstance(document.get("input"), str | list)


def responses_job(
    incoming: IncomingRequest, document: Document, *, wrap: Callable[[Mapping[str, object]], bytes], model: str = ""
) -> RunJob:
    """Return the job of a Responses body.

    Args:
        incoming: The request.
        document: Its body.
        wrap: Encodes a complete reply.
        model: Name of the model; empty: the body has it.

    Raises:
        ApiError: 400/5006 if a field is invalid or not supported.
    """
    if model:
        document = {**document, "model": model}
    body = incoming.bodies.responses(document)
    _refuse_unsupported(document)
    toolbox = Toolbox()
    request = run_request(body, incoming.profile, model=check_model_name(document["model"]), account=incoming.account)
    if "max_tokens" not in body.sampling:
        # OpenAI's meaning of an unset limit: up to the model's own.
        request.sampling.ClearField("max_tokens")
        request.max_tokens_must_fit = False
    _set_chat(request.chat, document, toolbox, request.model)
    _set_format(request, (document.get("text") or {}).get("format"))
    _set_logprobs(request, document)
    if toolbox.left_out:
        kinds = ", ".join(sorted(set(toolbox.left_out)))
        logger.info("request %s: tools left out, because they are not functions: %.200s", incoming.request_id, kinds)
    include = document.get("include") or ()
    options = document.get("stream_options") or {}
    fields = request_fields(document, toolbox.shown)
    writer = ResponsesWriter(
        Request(incoming.request_id, fields, toolbox, seals_thoughts=_SEALED_THOUGHTS in include),
        wrap,
        has_padding=incoming.has_padding or options.get("include_obfuscation") is True,
    )
    return RunJob(request, writer, body.stream)


def _refuse_unsupported(document: Document) -> None:
    problems = [f"'/{name}' {why}" for name, why in _REFUSED.items() if document.get(name)]
    problems += [f"'/{name}' {why}" for name, why in _MUST_BE_FALSE.items() if document.get(name) is True]
    if document.get("truncation") == "auto":
        problems.append("'/truncation' must be disabled: the client must shorten the conversation")
    if problems:
        raise bad_input(", ".join(problems))


def _set_chat(chat: pb.Chat, document: Document, toolbox: Toolbox, model: str) -> None:
    toolbox.add(document.get("tools") or [], "/tools")
    conversation = Conversation(model, toolbox)
    if instructions := document.get("instructions"):
        conversation.add_message("system", instructions)
    if isinstance(document["input"], str):
        conversation.add_message("user", document["input"])
    else:
        for index, item in enumerate(document["input"]):
            conversation.add_item(item, f"/input/{index}")
    if not conversation.turns:
        raise bad_input("'/input' has no message")
    chat.turns.extend(conversation.turns)
    chat.tools.extend(toolbox.functions)
    choose(document.get("tool_choice"), toolbox, chat)
    if (parallel := document.get("parallel_tool_calls")) is not None:
        chat.parallel_tool_calls = parallel
    effort = (document.get("reasoning") or {}).get("effort") or ""
    chat.reasoning_effort = _EFFORTS.get(effort, effort)


def _set_format(request: pb.RunRequest, form: Document | None) -> None:
    kind = form["type"] if form else "text"
    if form and kind == "json_schema":
        request.response_format.json_schema = json.dumps(form["schema"], ensure_ascii=False)
    elif kind == "json_object":
        request.response_format.json_object = True


def _set_logprobs(request: pb.RunRequest, document: Document) -> None:
    top = document.get("top_logprobs")
    if top or _LOGPROBS in (document.get("include") or ()):
        request.logprobs.top = int(top or 0)
        request.logprobs.SetInParent()
