"""/chat/completions and /completions: OpenAI's interface."""

from http_bridge.api.base import Call, Job, check_model_name
from http_bridge.api.openai.replies import ChatForm, CompletionForm, OpenAiErrors, UsagePlace
from http_bridge.api.reply_writer import ReplyForm
from http_bridge.protocol.run_body import RunBody
from http_bridge.protocol.to_grpc import run_request
from http_bridge.protocol.validation import load


class ChatSurface:
    """Chat completions."""

    errors = OpenAiErrors()

    def read(self, call: Call) -> Job:
        document = load(call.data, call.max_bytes)
        body = call.bodies.chat(document)
        model = check_model_name(document["model"])
        form = ChatForm(request_id=call.request_id, model=model, usage=_usage_place(call, body))
        return _job(call, body, model, form)


class CompletionSurface:
    """Completions: raw text in, its continuation out."""

    errors = OpenAiErrors()

    def read(self, call: Call) -> Job:
        document = load(call.data, call.max_bytes)
        body = call.bodies.completion(document)
        model = check_model_name(document["model"])
        echo = body.prompt or "" if body.echoes else ""
        form = CompletionForm(request_id=call.request_id, model=model, usage=_usage_place(call, body), echo=echo)
        return _job(call, body, model, form)


def _usage_place(call: Call, body: RunBody) -> UsagePlace:
    if body.includes_usage:
        return "own_chunk"
    return "last_choice" if call.is_at_account else "nowhere"


def _job(call: Call, body: RunBody, model: str, form: ReplyForm) -> Job:
    return Job(run_request(body, call.profile, model=model, account=call.account), form, body.stream)
