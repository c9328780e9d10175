"""Parses the requests of /chat/completions and /completions, OpenAI's API."""

from collections.abc import Callable
from dataclasses import replace

from http_bridge.api.adapters import with_adapter
from http_bridge.api.base import IncomingRequest, RunJob, check_model_name, skipped_notice
from http_bridge.api.openai.choices import OpenAiChoices, copies
from http_bridge.api.openai.errors import OpenAiErrors
from http_bridge.api.openai.replies import ChatWriter, CompletionWriter, OpenAiWriter, UsagePlace
from http_bridge.api.strict_writer import strict
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
        usage = _usage_place(incoming, body)

        def writer(index: int, prompt: str) -> ChatWriter:
            return ChatWriter(
                request_id=incoming.request_id,
                model=model,
                usage=usage,
                index=index,
                hides_reasoning=body.hides_reasoning,
            )

        return _job(incoming, body, model, writer)


class CompletionParser:
    """Parses completions: raw text in, its continuation out."""

    errors = OpenAiErrors()

    def parse(self, incoming: IncomingRequest) -> RunJob:
        """Return the parsed request. Raises ApiError if the request is invalid."""
        document = incoming.document()
        body = incoming.bodies.completion(document)
        model = check_model_name(document["model"])
        usage = _usage_place(incoming, body)

        def writer(index: int, prompt: str) -> CompletionWriter:
            echo = prompt if body.echoes else ""
            return CompletionWriter(request_id=incoming.request_id, model=model, usage=usage, echo=echo, index=index)

        return _job(incoming, body, model, writer)


def _usage_place(incoming: IncomingRequest, body: RunBody) -> UsagePlace:
    if body.includes_usage:
        return "own_chunk"
    return "last_choice" if incoming.is_at_account else "nowhere"


def _job(incoming: IncomingRequest, body: RunBody, model: str, writer: Callable[[int, str], OpenAiWriter]) -> RunJob:
    profile = incoming.profile.for_openai(is_at_account=incoming.is_at_account)
    body, model = with_adapter(incoming, body, model)
    prompts = (body.prompt or "", *body.further_prompts)
    bodies = (body, *(replace(body, prompt=prompt) for prompt in body.further_prompts))
    requests = [run_request(each, profile, model=model, account=incoming.account) for each in bodies]
    choices = None
    if len(prompts) * body.num_choices > 1:
        all_requests = tuple(
            copy
            for request in requests
            for copy in copies(request, body.num_choices, has_fixed_seeds=incoming.has_fixed_seeds)
        )
        prompt_of = [prompt for prompt in prompts for _ in range(body.num_choices)]
        writers = tuple(writer(index, prompt) for index, prompt in enumerate(prompt_of))
        choices = OpenAiChoices(all_requests, writers, num_prompts=len(prompts))
    first = strict(writer(0, prompts[0]), body, profile)
    return RunJob(requests[0], first, body.stream, choices, skipped_notice(body))
