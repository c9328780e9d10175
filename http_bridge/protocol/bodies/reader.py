"""Converts a request body to a RunBody, from the format of /ai/run or from one of OpenAI's three formats.

A body is validated against its schema first, so the fields have the right types afterwards. Does not depend on HTTP or gRPC.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from typing import Any

from http_bridge.protocol.bodies.messages import continues, message_problems, turns
from http_bridge.protocol.bodies.openai_values import without_unset
from http_bridge.protocol.bodies.thinking import thinking_fields, thinking_path
from http_bridge.protocol.bodies.tools import tool_fields
from http_bridge.protocol.bodies.unsupported import (
    chat_problems,
    completion_problems,
    model_name,
    responses_problems,
    run_problems,
)
from http_bridge.protocol.responses_schema import RESPONSES_LOGPROBS
from http_bridge.protocol.run_body import RunBody
from http_bridge.protocol.schemas import Inputs
from http_bridge.protocol.validation.documents import Validator, bad_field, bad_fields, bad_input, first_problems
from http_bridge.protocol.validation.problems import Problem, plain_clauses
from tailrace_shared.request_fields import MAX_CHOICES, SAMPLING_FIELDS

Document = Mapping[str, Any]

# Conversions of values that a body may contain and that inference.proto does not allow. The server reduces max_tokens
# to the model's limit and top_k to its vocabulary, so the largest uint32 has the same effect. OpenAI's top_p of 0 selects
# the most likely token, as the smallest top_p of /ai/run does.
_TO_CONTRACT: Mapping[str, Callable[[Any], float]] = {
    "max_tokens": lambda value: min(value, 2**32 - 1),
    "top_k": lambda value: min(value, 2**32 - 1),
    "top_p": lambda value: max(value, 0.001),
    "seed": lambda value: value % 2**64,
}
# Keys of OpenAI's object around a JSON Schema.
_WRAPPING = {"name", "description", "schema", "strict"}


class BodyReader:
    """Reads the bodies of one bridge. Thread-safe. Every method raises ApiError 400/5006 for an invalid field."""

    def __init__(self, inputs: Inputs) -> None:
        """Compile the schemas of `inputs`."""
        self._prompt = Validator(inputs.prompt)
        self._messages = Validator(inputs.messages)
        self._generic = Validator(inputs.generic)
        self._chat = Validator(inputs.chat)
        self._completion = Validator(inputs.completion)
        self._responses = Validator(inputs.responses)

    def run(self, document: Document, *, model: str) -> RunBody:
        """Return the fields of a body of /ai/run. If it has `messages`, its `prompt` and `raw` are ignored.

        Raises:
            ApiError: 400/5006 with the paths of the first 8 invalid fields.
        """
        document = _with_one_format(document)
        if document.get("max_tokens") is None and document.get("max_completion_tokens") is not None:
            document = {**document, "max_tokens": document["max_completion_tokens"]}
        has_messages = document.get("messages") is not None
        has_prompt = document.get("prompt") is not None
        if not has_messages and not has_prompt:
            clauses = ("required properties at '/' are 'prompt'", "required properties at '/' are 'messages'")
            raise bad_input(Problem("/prompt", _unmatched(*clauses), "the body needs prompt or messages"))
        named = chain(message_problems(document.get("messages"), model), run_problems(document, model))
        problems = (self._messages if has_messages else self._prompt).problems(document)
        if problems:
            other = "prompt" if has_messages else "messages"
            missing = [] if has_messages and has_prompt else [f"required properties at '/' are '{other}'"]
            problems = first_problems(chain(problems, named))
            plain = plain_clauses(problems)
            raise bad_input(Problem(problems[0].path, _unmatched(*missing, *problems), plain))
        _refuse(named)
        common = _common(document)
        if has_messages:
            return RunBody(**common, **_conversation(document))
        return RunBody(**common, **_prompted(document))

    def generic(self, document: Document) -> tuple[str, dict[str, Any]]:
        """Return the model and the input of a body of /ai/run without a model in its path."""
        _validate(self._generic, document)
        options = {"options": document["options"]} if document.get("options") else {}
        return document["model"], {**document["input"], **options}

    def chat(self, document: Document) -> RunBody:
        """Return the fields of a body of /chat/completions."""
        document = _with_one_format(without_unset(document))
        model = model_name(document)
        _validate(
            self._chat, document, message_problems(document.get("messages"), model), chat_problems(document, model)
        )
        wanted = document.get("max_completion_tokens") or document.get("max_tokens")
        logprobs = _whole(document.get("top_logprobs") or 0) if document.get("logprobs") else None
        return RunBody(
            **_common({**document, "max_tokens": wanted}),
            **_conversation(document),
            **_openai(document),
            logprobs=logprobs,
        )

    def completion(self, document: Document) -> RunBody:
        """Return the fields of a body of /completions. The prompt is raw text, as in OpenAI's API."""
        document = _with_one_format(without_unset(document))
        model = model_name(document)
        _validate(self._completion, document, completion_problems(document, model))
        _refuse_chat_fields(document, "the prompt of completions is raw text")
        given = document["prompt"]
        prompts = [given] if isinstance(given, str) else given
        rest = _openai(document)
        if len(prompts) * rest["num_choices"] > MAX_CHOICES:
            raise bad_field("/prompt", f"has {len(prompts)} prompts, and prompts times n must be <= {MAX_CHOICES}")
        return RunBody(
            **_common(document),
            **rest,
            prompt=prompts[0],
            further_prompts=tuple(prompts[1:]),
            raw=True,
            logprobs=_whole(document.get("logprobs")),
            echoes=document.get("echo") is True,
        )

    def responses(self, document: Document) -> RunBody:
        """Return the fields of a body of /responses without its conversation, tools and format."""
        document = without_unset(document)
        _validate(self._responses, document, responses_problems(document))
        limit = document.get("max_output_tokens") or document.get("max_tokens")
        common = {**document, "max_tokens": limit, "response_format": None}
        wants_logprobs = document.get("top_logprobs") or RESPONSES_LOGPROBS in document.get("include", ())
        return RunBody(
            **_common(common),
            **thinking_fields(document),
            logprobs=_whole(document.get("top_logprobs") or 0) if wants_logprobs else None,
        )


def _validate(validator: Validator, document: Document, *named: Iterable[Problem]) -> None:
    """Raise one error with all problems: those that the schema finds, and those in `named`."""
    if problems := first_problems(chain(validator.problems(document), *named)):
        raise bad_fields(problems)


def _refuse(named: Iterable[Problem]) -> None:
    if problems := first_problems(named):
        raise bad_fields(problems)


def _unmatched(*clauses: str) -> str:
    """Return Workers AI's message for a body that matches neither of its two schemas, with the problems of both."""
    return f"oneOf at '/' not met, 0 matches: {', '.join(clauses)}"


def _common(document: Document) -> dict[str, Any]:
    stop = document.get("stop")
    options = document.get("options") or {}
    return {
        "stream": document.get("stream") is True,
        "sampling": _sampling(document),
        "logit_bias": {int(token): bias for token, bias in (document.get("logit_bias") or {}).items() if bias},
        "stop": (stop,) if isinstance(stop, str) else tuple(stop or ()),
        "adapter": document.get("lora") or "",
        "reject_if_busy": options.get("rejectIfBusy") is True,
        "json_schema": _json_schema(document.get("response_format")),
    }


def _openai(document: Document) -> dict[str, Any]:
    return {
        "num_choices": _whole(document.get("n")) or 1,
        "includes_usage": (document.get("stream_options") or {}).get("include_usage") is True,
    }


def _sampling(document: Document) -> dict[str, float]:
    """Return the sampling parameters that the body sets, with the types and ranges of inference.proto."""
    values: dict[str, float] = {}
    for parameter in SAMPLING_FIELDS:
        if (value := document.get(parameter.name)) is not None:
            value = int(value) if parameter.kind == "integer" else value
            convert = _TO_CONTRACT.get(parameter.name)
            values[parameter.name] = value if convert is None else convert(value)
    return values


def _whole(value: float | None) -> int | None:
    """Return the value as an integer: JSON Schema accepts 5.0 as an integer too."""
    return None if value is None else int(value)


def _conversation(document: Document) -> dict[str, Any]:
    messages = document["messages"]
    continued = document.get("continue_final_message")
    begins = document.get("add_generation_prompt")
    if continued and begins:
        raise bad_field("/continue_final_message", "contradicts '/add_generation_prompt': send one of them")
    if (continued or continues(messages)) and messages[-1]["role"] != "assistant":
        path = "/continue_final_message" if continued else f"/messages/{len(messages) - 1}/prefix"
        raise bad_field(path, "needs an assistant's message at the end")
    return {
        "turns": turns(messages),
        "continues_turn": bool(continued) or continues(messages),
        "omits_generation_prompt": begins is False and not continued and not continues(messages),
        **thinking_fields(document),
        **tool_fields(document),
    }


def _prompted(document: Document) -> dict[str, Any]:
    """Return the fields of a body of /ai/run with `prompt`, which becomes a user's turn unless it is raw."""
    if document.get("raw") is True:
        _refuse_chat_fields(document, "the prompt is raw")
        return {"prompt": document["prompt"], "raw": True}
    return {"prompt": document["prompt"], **thinking_fields(document), **tool_fields(document)}


def _refuse_chat_fields(document: Document, reason: str) -> None:
    """Refuse the fields that need a chat template."""
    needs_tools = document.get("tools") and document.get("tool_choice") != "none"
    path = thinking_path(document) or ("/tools" if needs_tools else None)
    if path is not None:
        raise bad_field(path, f"needs the model's chat template, and {reason}: send messages")


def _with_one_format(document: Document) -> Document:
    """Return the body with OpenAI's `json_schema` in `response_format`. Other APIs put `schema` next to `type`."""
    form = document.get("response_format")
    if not isinstance(form, dict) or form.get("schema") is None or form.get("json_schema") is not None:
        return document
    if form.get("type") not in ("json_object", "json_schema"):
        return document
    return {**document, "response_format": {"type": "json_schema", "json_schema": form["schema"]}}


def _json_schema(response_format: Document | None) -> str | None:
    if not response_format or response_format["type"] == "text":
        return None
    if response_format["type"] == "json_object":
        return ""
    schema = response_format["json_schema"]
    if isinstance(schema, dict) and "schema" in schema and set(schema) <= _WRAPPING:
        schema = schema["schema"]
    return json.dumps(schema, ensure_ascii=False)
