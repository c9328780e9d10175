"""Parses the requests of /chat/completions and /completions, OpenAI's API."""

from http_bridge.api.base import IncomingRequest, RunJob, check_model_name
from http_bridge.api.openai.replies import ChatWriter, CompletionWriter, OpenAiErrors, UsagePlace
from http_bridge.api.reply_writer import ReplyWriter
from http_bridge.protocol.run_body import RunBody
from http_bridge.protocol.to_grpc import run_request


class ChatParser:
    """Parses chat completions."""

    errors = OpenAiErrors()

    def parse(self, incoming: IncomingRequest) -> RunJob:
        """Return the parsed request. Raises ApiError if the request is invalid."""
        document = incoming.document()
        body = incoming.bodies.chat(document)
        model = check_model_name(document["model"])
        writer = ChatWriter(request_id=incoming.request_id, model=model, usage=_usage_place(incoming, body))
        return _job(incoming, body, model, writer)


class CompletionParser:
    """Parses completions: raw text in, its continuation out."""

    errors = OpenAiErrors()

    def parse(self, incoming: IncomingRequest) -> RunJob:
        """Return the parsed request. Raises ApiError if the request is invalid."""
        document = incoming.document()
        body = incoming.bodies.completion(document)
        model = check_model_name(document["model"])
        echo = body.prompt or "" if body.echoes else ""
        usage = _usage_place(incoming, body)
        return _job(
            incoming,
            body,
            model,
            CompletionWriter(request_id=incoming.request_id, model=model, usage=usage, echo=echo),
        )


def _usage_place(incoming: IncomingRequest, body: RunBody) -> UsagePlace:
    if body.includes_usage:
        return "own_chunk"
    return "last_choice" if incoming.is_at_account else "nowhere"


def _job(incoming: IncomingRequest, body: RunBody, model: str, writer: ReplyWriter) -> RunJob:
    profile = incoming.profile.for_openai(is_at_account=incoming.is_at_account)
    return RunJob(run_request(body, profile, model=model, account=incoming.account), writer, body.stream)
