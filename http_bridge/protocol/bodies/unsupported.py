"""Finds the fields of a body that would change the reply and that cannot be honoured.

The tables contain fields with which another server would answer differently. Unknown fields are not in the tables and are
ignored. So are fields that do not change the reply: metadata, user, service_tier, prediction and others.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from http_bridge.protocol.bodies.messages import reads_text_only
from http_bridge.protocol.validation.problems import Problem
from tailrace_shared.request_fields import MAX_NAME_LENGTH

Document = Mapping[str, Any]


def _is_empty(value: Any) -> bool:
    return value is None or value is False or value in ("", [], {})


@dataclass(frozen=True, slots=True)
class _Field:
    """A field that cannot be honoured.

    Attributes:
        reason: The part of the error's sentence after the field's name.
        is_harmless: Returns True for a value that has no effect.
    """

    reason: str
    is_harmless: Callable[[Any], bool] = _is_empty


_ON_OPENAI = "is not supported here: /v1/chat/completions has log probabilities"
_SCHEMA_REASON = "is not supported: constrain the reply with response_format"
_MEDIA: Mapping[str, str] = {
    **dict.fromkeys(("image", "images", "image_url", "mask", "image_b64"), "is a picture"),
    **dict.fromkeys(("video", "videos"), "is a video"),
    **dict.fromkeys(("file", "files"), "is a file"),
}
# Fields of every route that generates text.
_COMMON: Mapping[str, _Field] = {
    **dict.fromkeys(
        ("guided_json", "guided_regex", "guided_choice", "guided_grammar", "structured_outputs", "grammar"),
        _Field(_SCHEMA_REASON),
    ),
    "use_beam_search": _Field("is not supported: every reply is sampled"),
    "stop_token_ids": _Field("is not supported: send the tokens' text as stop"),
    "bad_words": _Field("is not supported: exclude tokens with logit_bias"),
    "truncate_prompt_tokens": _Field("is not supported: send a shorter prompt"),
}
_CONVERSATION: Mapping[str, _Field] = {
    "chat_template": _Field("is not supported: the model's own template is used"),
    "documents": _Field("is not supported: put the documents into a message"),
}
_OLD_TOOLS: Mapping[str, _Field] = {
    "functions": _Field("is OpenAI's form of 2023: send tools"),
    "function_call": _Field(
        "is OpenAI's form of 2023: send tool_choice", lambda value: value in (None, "none", "auto")
    ),
}
_CHAT: Mapping[str, _Field] = {
    **_OLD_TOOLS,
    "modalities": _Field(
        "asks for more than text, and the model writes text only", lambda value: value in (None, [], ["text"])
    ),
    "audio": _Field("asks for sound, and the model writes text only"),
    "web_search_options": _Field("asks for a web search, which this server does not have", lambda value: value is None),
    "store": _Field("asks to keep the reply, and nothing is stored here"),
    "verbosity": _Field(
        "is not supported: ask for a short or long reply in a message", lambda value: value in (None, "medium")
    ),
    "moderation": _Field("is not supported: no moderation runs here"),
    "echo": _Field("is not supported: a chat's reply does not contain the conversation"),
}
_COMPLETION: Mapping[str, _Field] = {
    "audio": _CHAT["audio"],
    "modalities": _CHAT["modalities"],
    "suffix": _Field("is not supported: the model only continues the prompt"),
}
_RUN: Mapping[str, _Field] = {
    "n": _Field(
        "is not supported here: /v1/chat/completions has several choices", lambda value: value in (None, -1, 0, 1)
    ),
    "logprobs": _Field(_ON_OPENAI),
    "top_logprobs": _Field(_ON_OPENAI, lambda value: value in (None, 0)),
    "modalities": _CHAT["modalities"],
    "web_search_options": _CHAT["web_search_options"],
    "functions": _Field("are embedded functions, which run in the Worker: send tools"),
    "audio": _Field("is sound, and the model reads and writes text only"),
}
# Ending of the reason for a field that has another name in the Responses API.
IN_THIS_API = "in this API"
_NOT_STORED = "because nothing is stored here"
_RESPONSES: Mapping[str, _Field] = {
    "store": _Field(f"must be false, {_NOT_STORED}"),
    "background": _Field(f"must be false, {_NOT_STORED}: stream a long reply"),
    "previous_response_id": _Field(f"is not supported, {_NOT_STORED}: send the conversation as input"),
    "conversation": _Field(f"is not supported, {_NOT_STORED}: send the conversation as input"),
    "prompt": _Field(f"is not supported, {_NOT_STORED}: send instructions and input"),
    "truncation": _Field(
        "must be disabled: the client must shorten the conversation", lambda value: value in (None, "disabled")
    ),
    "messages": _Field(f"is input {IN_THIS_API}"),
    "response_format": _Field(f"is text.format {IN_THIS_API}"),
    "functions": _Field(f"is tools {IN_THIS_API}"),
    "n": _Field("is not supported: send a request for each reply", lambda value: value in (None, 1)),
    "context_management": _Field("is not supported: the client must shorten the conversation"),
    "moderation": _Field("is not supported: no moderation runs here"),
}


def model_name(document: Document) -> str:
    """Return the name of a body's model, for error messages. A name may be as long as the body, so it is truncated."""
    name = document.get("model")
    return name[:MAX_NAME_LENGTH] if isinstance(name, str) else ""


def chat_problems(document: Document, model: str) -> Iterator[Problem]:
    """Yield the problems of a body of chat completions. `model`: the model's name, for the errors."""
    yield from _problems(document, model, {**_COMMON, **_CONVERSATION, **_CHAT})


def completion_problems(document: Document, model: str) -> Iterator[Problem]:
    """Yield the problems of a body of completions. `model`: the model's name, for the errors."""
    yield from _problems(document, model, {**_COMMON, **_COMPLETION})
    if "best_of" in document and _exceeds(document["best_of"], document.get("n")):
        yield Problem("/best_of", "'/best_of' is not supported: ask for n replies and choose among them")


def responses_problems(document: Document) -> Iterator[Problem]:
    """Yield the problems of a body of the Responses API."""
    yield from _problems(document, model_name(document), {**_COMMON, **_RESPONSES})


def run_problems(document: Document, model: str) -> Iterator[Problem]:
    """Yield the problems of a body of /ai/run. `model`: the model's name, for the errors."""
    yield from _problems(document, model, {**_COMMON, **_CONVERSATION, **_RUN})


def _problems(document: Document, model: str, fields: Mapping[str, _Field]) -> Iterator[Problem]:
    for name, value in document.items():
        if (field := fields.get(name)) is not None and not field.is_harmless(value):
            yield Problem(f"/{name}", f"'/{name}' {field.reason}")
        elif name in _MEDIA and not _is_empty(value):
            yield Problem(f"/{name}", f"'/{name}' {_MEDIA[name]}, and {reads_text_only(model)}")


def _exceeds(best_of: Any, num_choices: Any) -> bool:
    return isinstance(best_of, int | float) and best_of > max(1, num_choices if isinstance(num_choices, int) else 1)
