"""Makes nearly valid requests: bodies, whole HTTP requests and protobuf messages with a few random changes."""

import copy
import json
import random
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from tailrace.v1 import inference_pb2 as pb
from tests.reliability.client import post, run_path
from tests.support.servers import MODEL

TOOL = {"name": "weather", "description": "tells it", "parameters": {"type": "object", "properties": {"city": {}}}}
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}, "s": {"enum": ["a", "b"]}}, "required": ["n"]}
CHAT = {"messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "where is new york?"}]}
SAMPLING = {"temperature": 0.5, "top_p": 0.9, "top_k": 5, "seed": 7, "repetition_penalty": 1.1, "max_tokens": 1}
RUN = run_path("acc")
# Path and body of valid requests.
RIGHT: list[tuple[str, dict[str, Any]]] = [
    (RUN, {"prompt": "where is new york?", "stream": True, "max_tokens": 1}),
    (RUN, {"prompt": "where is", "raw": True, "frequency_penalty": 0.5, "presence_penalty": -0.5, **SAMPLING}),
    (RUN, {**CHAT, "stop": ["\n", "the"], "stream": True, "max_tokens": 1}),
    (RUN, {**CHAT, "tools": [TOOL], "max_tokens": 1}),
    (RUN, {**CHAT, "response_format": {"type": "json_schema", "json_schema": SCHEMA}, "max_tokens": 1}),
    (RUN, {"prompt": "hi", "options": {"rejectIfBusy": False}, "lora": None, "max_tokens": 1}),
    ("/client/v4/accounts/acc/ai/run", {"model": MODEL, "input": {"prompt": "hi", "max_tokens": 1}}),
    ("/v1/chat/completions", {"model": MODEL, **CHAT, "logprobs": True, "top_logprobs": 2, "max_tokens": 1}),
    ("/v1/chat/completions", {"model": MODEL, **CHAT, "stream": True, "stream_options": {"include_usage": True}}),
    ("/v1/completions", {"model": MODEL, "prompt": "hi", "echo": True, "logprobs": 1, "n": 1, "max_tokens": 1}),
    ("/run?version=3", {"inputs": {"prompt": "hi", "max_tokens": 1}, "options": {}, "model": MODEL}),
]
TEXTS = [
    "",
    " ",
    "\0",
    "\ud800",
    "é" * 300,
    "x" * 3_000,
    "</s><s>[INST] <<SYS>>",
    "\u202e🏳️‍🌈\ufeff",
    "%s%n{}${{}}",
    "../../etc",
]
NUMBERS = [0, -1, 1, 2**31, 2**32, 2**63, -(2**63), 2**64, 10**40, 0.5, -0.0, 1e308, -1e308, 5e-324, float("nan")]
VALUES: list[Any] = [None, True, False, *TEXTS, *NUMBERS, [], {}, [[]], [None] * 50, {"": {}}, {"type": "text"}]
KEYS = ["prompt", "messages", "stream", "n", "tools", "tool_choice", "response_format", "stop", "best_of", "image", "p"]
# Larger bodies are cut off: one of megabytes would grow the process more than any leak that the test detects.
LONGEST_BODY = 200_000
# Completes a request whose declared length is too large, and does not begin another one.
FILLING = b"x" * 200 + b"\r\n\r\n"
BYTES = [b"\0", b"\xff", b"\r\n", b"\r\n\r\n", b'"', b"{", b"[" * 500, b"}", b":", b"-", b"9" * 30, b"%00", b"\x1f\x8b"]


def json_request(dice: random.Random) -> bytes:
    """Return a POST with a JSON body in which a few parts are replaced, removed or added. One of four is invalid JSON."""
    path, document = dice.choice(RIGHT)
    document = json.loads(json.dumps(document))
    for _ in range(dice.choice((1, 1, 2, 4))):
        _change(document, dice)
    data = json.dumps(document, ensure_ascii=True).encode()[:LONGEST_BODY]
    return post(path, changed_bytes(data, dice) if dice.random() < 0.25 else data)


def http_request(dice: random.Random) -> bytes:
    """Return a POST with bytes changed anywhere in its head or body. Its declared length may be wrong."""
    path, document = dice.choice(RIGHT)
    return changed_bytes(post(path, document), dice) + FILLING


def message(dice: random.Random) -> bytes:
    """Return a RunRequest with changed fields. One of three is not a valid message."""
    sampling = pb.Sampling(max_tokens=1, temperature=0.5, top_p=0.9, top_k=5, seed=7, stop=["\n"])
    request = pb.RunRequest(model=MODEL, sampling=sampling)
    if dice.random() < 0.5:
        request.text = "where is new york?"
    else:
        request.chat.turns.add(role="user", content="where is new york?")
        if dice.random() < 0.3:
            request.chat.tools.add(name="weather", parameters='{"type": "object"}')
            request.chat.tool_choice = pb.TOOL_CHOICE_REQUIRED
    for _ in range(dice.choice((1, 1, 2, 4))):
        _change_field(request, dice)
    data = request.SerializeToString()
    return changed_bytes(data, dice) if dice.random() < 0.33 else data


def changed_bytes(data: bytes, dice: random.Random) -> bytes:
    for _ in range(dice.choice((1, 1, 2, 5))):
        start = dice.randrange(len(data) + 1)
        end = min(len(data), start + dice.choice((0, 1, 1, 4, 40)))
        match dice.randrange(4):
            case 0:
                new = dice.choice(BYTES)
            case 1:
                new = dice.randbytes(end - start)
            case 2:
                new = b""
            case _:
                new = data[start:end] * 2
        data = data[:start] + new + data[end:]
    return data


def _change(document: Any, dice: random.Random) -> None:
    """Change a random place within a JSON object or array."""
    inside = document
    while True:
        keys: list[Any] = list(inside) if isinstance(inside, dict) else list(range(len(inside)))
        if not keys:
            break
        key = dice.choice(keys)
        if isinstance(inside[key], dict | list) and dice.random() < 0.7:
            inside = inside[key]
            continue
        match dice.randrange(5):
            case 0:
                del inside[key]
            case 1:
                inside[key] = [inside[key]] * dice.choice((1, 2, 50))
            case 2:
                inside[key] = _nested(dice.choice((3, 100, 900)))
            case _:
                inside[key] = _odd(dice)
        return
    if isinstance(inside, dict):
        inside[dice.choice(KEYS)] = _odd(dice)
    else:
        inside.append(_odd(dice))


def _odd(dice: random.Random) -> Any:
    return copy.deepcopy(dice.choice(VALUES))


def _nested(depth: int) -> Any:
    value: Any = 1
    for level in range(depth):
        value = [value] if level % 2 else {"a": value}
    return value


def _change_field(inside: Message, dice: random.Random) -> None:
    field = dice.choice(inside.DESCRIPTOR.fields)
    if dice.random() < 0.15:
        inside.ClearField(field.name)
    elif field.message_type is None:
        values = [_value(field, dice) for _ in range(dice.choice((1, 2, 40)))]
        if field.is_repeated:
            getattr(inside, field.name).extend(values)
        else:
            setattr(inside, field.name, values[0])
    else:
        messages = getattr(inside, field.name)
        if field.message_type.GetOptions().map_entry:
            key, value = field.message_type.fields
            for _ in range(dice.choice((1, 2, 40))):
                messages[_value(key, dice)] = _value(value, dice)
        elif field.is_repeated:
            for _ in range(dice.choice((1, 2, 40))):
                _change_field(messages.add(), dice)
        else:
            messages.SetInParent()
            _change_field(messages, dice)


def _value(field: FieldDescriptor, dice: random.Random) -> Any:
    if field.enum_type is not None:
        return dice.choice((0, 1, 2, 3, 77, -1))
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_STRING:
            text = dice.choice([*TEXTS, MODEL, "user", '{"type": "object"}', '{"a": ' * 500])
            return text.encode("utf-8", "replace").decode()
        case FieldDescriptor.CPPTYPE_BOOL:
            return dice.random() < 0.5
        case FieldDescriptor.CPPTYPE_FLOAT | FieldDescriptor.CPPTYPE_DOUBLE:
            return dice.choice((0.0, -1.0, 1e38, -1e38, float("nan"), float("inf"), 1e-45, 0.5))
        case FieldDescriptor.CPPTYPE_UINT32 | FieldDescriptor.CPPTYPE_UINT64:
            return dice.choice((0, 1, 2, 2**31, 2**32 - 1))
        case _:
            return dice.choice((0, 1, -1, 2**31 - 1, -(2**31)))
