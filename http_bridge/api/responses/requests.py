"""Parses the requests of /v1/responses, and the bodies of /ai/run that have the same format."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from http_bridge.api.adapters import with_adapter
from http_bridge.api.base import IncomingRequest, RunJob, check_model_name, skipped_notice
from http_bridge.api.reply_writer import json_bytes
from http_bridge.api.responses.errors import ResponsesErrors
from http_bridge.api.responses.items import Conversation
from http_bridge.api.responses.recent import RECENT_ITEMS
from http_bridge.api.responses.response_object import Request, request_fields
from http_bridge.api.responses.tools import Toolbox, choose
from http_bridge.api.responses.writer import ResponsesWriter
from http_bridge.api.upstream_models import sampling_defaults
from http_bridge.protocol.bodies.tools import is_function
from http_bridge.protocol.run_body import RunBody
from http_bridge.protocol.to_grpc import TOOL_CHOICES, run_request
from http_bridge.protocol.validation.documents import bad_field
from tailrace.v1 import inference_pb2 as pb

Document = Mapping[str, Any]

_SEALED_THOUGHTS = "reasoning.encrypted_content"


class ResponsesParser:
    """Parses requests of OpenAI's Responses API."""

    errors = ResponsesErrors()

    def parse(self, incoming: IncomingRequest) -> RunJob:
        """Return the parsed request. Raises ApiError if the request is invalid."""
        document = incoming.document()
        return responses_job(incoming, document, wrap=json_bytes)


def is_responses_body(document: Document) -> bool:
    """Return True if a body of /ai/run has the format of the Responses API: `input`, and no prompt or messages."""
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
        model: Name of the model; empty if the body names it.

    Raises:
        ApiError: 400/5006 if a field is invalid or not supported.
    """
    if model:
        document = {**document, "model": model}
    body = incoming.bodies.responses(document)
    profile = incoming.profile.for_openai(is_at_account=False)
    body, model = with_adapter(incoming, body, check_model_name(document["model"]))
    request = run_request(body, profile, model=model, account=incoming.account)
    toolbox = Toolbox()
    recall = partial(RECENT_ITEMS.find, incoming.account)
    _set_chat(request.chat, document, Conversation(request.model, toolbox, recall), toolbox)
    _set_format(request, (document.get("text") or {}).get("format"))
    notices = skipped_notice(replace(body, skipped_tools=toolbox.left_out))
    return RunJob(request, _writer(incoming, document, body, toolbox, wrap), body.stream, notices=notices)


def responses_writer(
    incoming: IncomingRequest, document: Document, body: RunBody, *, wrap: Callable[[Mapping[str, object]], bytes]
) -> ResponsesWriter:
    """Return the writer that answers a body in another format with a Response object.

    Args:
        incoming: The request.
        document: Its body, with the model.
        body: The fields of the body.
        wrap: Encodes a complete reply.
    """
    toolbox = Toolbox()
    toolbox.add([tool for tool in document.get("tools") or () if is_function(tool)], "/tools")
    return _writer(incoming, document, body, toolbox, wrap)


def _writer(
    incoming: IncomingRequest,
    document: Document,
    body: RunBody,
    toolbox: Toolbox,
    wrap: Callable[[Mapping[str, object]], bytes],
) -> ResponsesWriter:
    # A body in another format may have any values here.
    include, options = document.get("include"), document.get("stream_options")
    defaults = sampling_defaults(incoming.models.find_model(document["model"]))
    request = Request(
        incoming.request_id,
        request_fields(document, toolbox.shown, defaults),
        toolbox,
        seals_thoughts=isinstance(include, list) and _SEALED_THOUGHTS in include,
        hides_thoughts=body.hides_reasoning,
        account=incoming.account,
        keeps_items=document.get("store") is not False,
        is_from_codex=incoming.headers.get("originator", "").startswith("codex"),
    )
    pads = isinstance(options, dict) and options.get("include_obfuscation") is True
    return ResponsesWriter(request, wrap, has_padding=incoming.has_padding or pads)


def _set_chat(chat: pb.Chat, document: Document, conversation: Conversation, toolbox: Toolbox) -> None:
    toolbox.add(document.get("tools") or [], "/tools")
    if instructions := document.get("instructions"):
        conversation.add_message("system", instructions)
    if isinstance(document["input"], str):
        conversation.add_message("user", document["input"])
    else:
        for index, item in enumerate(document["input"]):
            conversation.add_item(item, f"/input/{index}")
    if not conversation.turns:
        raise bad_field("/input", "has no message")
    chat.turns.extend(conversation.turns)
    chat.tools.extend(toolbox.functions)
    choice = choose(document.get("tool_choice"), toolbox)
    chat.tool_choice, chat.tool_name = TOOL_CHOICES[choice.tool_choice], choice.tool_name
    chat.allowed_tools.extend(choice.allowed_tools)
    parallel = document.get("parallel_tool_calls")
    parallel = choice.parallel_tool_calls if parallel is None else parallel
    if parallel is not None:
        chat.parallel_tool_calls = parallel


def _set_format(request: pb.RunRequest, form: Document | None) -> None:
    kind = form["type"] if form else "text"
    if form and kind == "json_schema":
        request.response_format.json_schema = json.dumps(form["schema"], ensure_ascii=False)
    elif kind == "json_object":
        request.response_format.json_object = True
