"""Turns the bytes of a request body into a RunBody, or says everything that is wrong with them.

Knows Workers AI's fields, types and ranges; knows nothing of HTTP, of gRPC or of the models.
"""

import json
from dataclasses import dataclass
from typing import Never

from http_bridge.errors import ApiError
from http_bridge.fields import Fields, TooManyProblems, type_name

MAX_ROLE_CHARACTERS = 64
MAX_STOP_STRINGS = 16
MAX_STOP_CHARACTERS = 256
_MAX_UINT32 = 2**32 - 1
# How a complaint names what may be a string or an array of strings.
_TEXTS = "string' or 'array"


@dataclass(frozen=True, slots=True)
class Turn:
    """One message: who speaks (1 to 64 characters) and what was said (may be empty)."""

    role: str
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunBody:
    """A valid body. Exactly one of `prompt` and `turns` is not empty; None means that the client left a field out."""

    prompt: str | None
    turns: tuple[Turn, ...]
    raw: bool
    stream: bool
    max_tokens: int | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    seed: int | None
    repetition_penalty: float | None
    frequency_penalty: float | None
    presence_penalty: float | None
    stop: tuple[str, ...]
    reject_if_busy: bool


def parse_body(data: bytes) -> RunBody:
    """Parse and check a request body. Unknown keys are ignored, null counts as absent, `messages` win over `prompt`
    (and over `raw`, which belongs to it).

    Raises ApiError 400/5006 that names the wrong fields (the first 8) by their paths in the body.
    """
    document = _load(data)
    if not isinstance(document, dict):
        raise bad_input(f"Type mismatch of '/', '{type_name(document)}' not in 'object'")
    problems: list[str] = []
    try:
        body = _read_body(Fields(document, "", problems))
    except TooManyProblems:
        problems.append("and more")
    if problems:
        raise bad_input(", ".join(problems))
    return body


def bad_input(problem: str) -> ApiError:
    return ApiError(400, 5006, f"Bad input: Error: {problem}")


def _load(data: bytes) -> object:
    try:
        return json.loads(data.decode("utf-8-sig"), parse_constant=_refuse_constant, parse_int=_parse_integer)
    except UnicodeDecodeError:
        raise bad_input("the body is not UTF-8") from None
    except RecursionError:
        raise bad_input("the body is nested too deeply") from None
    except json.JSONDecodeError as error:
        place = f" (line {error.lineno}, column {error.colno})" if data else " (it is empty)"
        raise bad_input(f"the body is not JSON{place}") from None


def _refuse_constant(name: str) -> Never:
    raise bad_input(f"the body is not JSON ({name} is no JSON number)")


def _parse_integer(digits: str) -> int | float:
    # int() refuses thousands of digits with an error of its own; as a float such a number only fails its range.
    return int(digits) if len(digits) <= 32 else float(digits)


def _read_body(fields: Fields) -> RunBody:
    has_messages = fields.get("messages") is not None
    if not has_messages and fields.get("prompt") is None:
        fields.complain("required properties at '/' are 'prompt' or 'messages'")
    max_tokens = fields.integer("max_tokens", minimum=1)
    repetition_penalty = fields.number("repetition_penalty", minimum=0, maximum=2)
    if repetition_penalty == 0:
        fields.complain("'/repetition_penalty' must be > 0 (1 changes nothing)")
    return RunBody(
        prompt=None if has_messages else fields.text("prompt", minimum=1),
        turns=_read_turns(fields),
        raw=fields.boolean("raw"),
        stream=fields.boolean("stream"),
        # Longer than any model can reply; the server clamps it to the model's own limit.
        max_tokens=None if max_tokens is None else min(max_tokens, _MAX_UINT32),
        temperature=fields.number("temperature", minimum=0, maximum=5),
        top_p=fields.number("top_p", minimum=0.001, maximum=1),
        top_k=fields.integer("top_k", minimum=1, maximum=50),
        seed=fields.integer("seed", minimum=1, maximum=9_999_999_999),
        repetition_penalty=repetition_penalty,
        frequency_penalty=fields.number("frequency_penalty", minimum=-2, maximum=2),
        presence_penalty=fields.number("presence_penalty", minimum=-2, maximum=2),
        stop=_read_stop(fields),
        reject_if_busy=fields.nested("options").boolean("rejectIfBusy"),
    )


def _read_turns(fields: Fields) -> tuple[Turn, ...]:
    if fields.get("messages") == []:
        fields.complain("'/messages' must hold at least 1 message")
    return tuple(_read_turn(message) for message in fields.objects("messages"))


def _read_turn(message: Fields) -> Turn:
    role, content = message.get("role"), message.get("content")
    # An assistant's turn that only called tools has no content.
    if message.is_object and (role is None or (content is None and role != "assistant")):
        message.complain(f"required properties at '{message.path}' are 'role,content'")
    return Turn(
        role=message.text("role", minimum=1, maximum=MAX_ROLE_CHARACTERS) or "",
        content=_read_parts(message) if isinstance(content, list) else message.text("content", expected=_TEXTS) or "",
    )


def _read_parts(message: Fields) -> str:
    parts = message.objects("content")
    for part in parts:
        if part.is_object and part.get("type") != "text":
            part.complain(f"'{part.path}/type' must be 'text'")
        elif part.is_object and part.get("text") is None:
            part.complain(f"required properties at '{part.path}' are 'type,text'")
    return "".join(part.text("text") or "" for part in parts)


def _read_stop(fields: Fields) -> tuple[str, ...]:
    value = fields.get("stop")
    if not isinstance(value, list):
        text = fields.text("stop", minimum=1, maximum=MAX_STOP_CHARACTERS, expected=_TEXTS)
        return () if text is None else (text,)
    if len(value) > MAX_STOP_STRINGS:
        fields.complain(f"'/stop' must hold at most {MAX_STOP_STRINGS} strings")
        return ()
    return fields.texts("stop", minimum=1, maximum=MAX_STOP_CHARACTERS)
