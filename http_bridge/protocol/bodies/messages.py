"""Converts the messages of a conversation, in every format that clients send, to turns.

`message_problems` finds content that the schema does not check: pictures, sound and files in the formats of several
APIs. It accepts messages that do not fit the schema, so that one error can list the problems of both checks.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from http_bridge.protocol.conversation_schemas import TEXT_PARTS
from http_bridge.protocol.run_body import ToolCall, Turn
from http_bridge.protocol.validation.documents import MAX_DEPTH, bad_field, bad_input, is_deeper
from http_bridge.protocol.validation.problems import Problem

Document = Mapping[str, Any]

_THOUGHT_PARTS = ("thinking", "reasoning")
_THOUGHT_KEYS = ("reasoning_content", "reasoning", "thinking")
# Kinds of content by the type of a content part in OpenAI's, Anthropic's and other APIs. A part without a type has one of
# these names as a key.
_MEDIA = {
    **dict.fromkeys(("image_url", "input_image", "image", "image_file", "image_embeds"), "a picture"),
    **dict.fromkeys(("input_audio", "audio", "audio_url", "output_audio"), "sound"),
    **dict.fromkeys(("video_url", "video", "input_video"), "a video"),
    **dict.fromkeys(("file", "input_file", "document", "file_url"), "a file"),
}
# Kinds of content by the key of a message that contains them, for keys other than `content`.
_MEDIA_KEYS = {
    **dict.fromkeys(("image", "images", "image_url", "image_urls"), "a picture"),
    **dict.fromkeys(("file", "files", "attachments"), "a file"),
    "audio": "sound",
    "video": "a video",
}
# A part whose text is a picture, sound or video in base64.
_DATA_URL = re.compile(r"\s*data:(image|audio|video)/[\w.+-]+;base64,")


def message_problems(messages: object, model: str) -> Iterator[Problem]:
    """Yield a problem for each part of `messages` that the model cannot read. `model`: the model's name, for errors."""
    for index, message in enumerate(messages if isinstance(messages, list) else ()):
        if not isinstance(message, dict):
            continue
        path = f"/messages/{index}"
        for key, kind in _MEDIA_KEYS.items():
            if message.get(key):
                yield Problem(f"{path}/{key}", f"'{path}/{key}' is {kind}, and {reads_text_only(model)}")
        content = message.get("content")
        for place, part in enumerate(content if isinstance(content, list) else ()):
            if isinstance(part, dict):
                yield from _part_problems(part, f"{path}/content/{place}", model)


def reads_text_only(model: str) -> str:
    """Return the clause for input that is not text."""
    return f"the model {model} reads text only"


def turns(messages: list[Document]) -> tuple[Turn, ...]:
    """Return the turns of messages that fit the schema and have no problems.

    Raises:
        ApiError: 400/5006 for a tool call without a name or with arguments that are not a JSON object.
    """
    return tuple(_turn(message, f"/messages/{index}") for index, message in enumerate(messages))


def continues(messages: list[Document]) -> bool:
    """Return True if `prefix` of the last message is true. The reply then continues this message."""
    return messages[-1].get("prefix") is True


def _part_problems(part: Document, path: str, model: str) -> Iterator[Problem]:
    kind = part.get("type")
    if kind is None and not isinstance(part.get("text"), str):
        kind = next((key for key in _MEDIA if key in part), None)
        if kind is None:
            yield Problem(path, f"required properties at '{path}' are 'type,text'")
            return
    if isinstance(text := part.get("text"), str) and _DATA_URL.match(text):
        yield Problem(f"{path}/text", f"'{path}/text' is a data URL instead of text, and {reads_text_only(model)}")
        return
    if kind is None or kind in TEXT_PARTS or kind in _THOUGHT_PARTS or kind == "refusal" or not isinstance(kind, str):
        return
    holds = _MEDIA.get(kind)
    if holds is None:
        yield Problem(f"{path}/type", f"'{path}' has the unknown type {kind:.100}, and {reads_text_only(model)}")
    else:
        yield Problem(path, f"'{path}' ({kind}) is {holds}, and {reads_text_only(model)}")


def _turn(message: Document, path: str) -> Turn:
    text, thoughts = _content(message.get("content"))
    calls = message.get("tool_calls") or ()
    old_call = message.get("function_call")
    if old_call and not calls:
        calls = ({"id": "", "function": old_call},)
    role = message["role"]
    return Turn(
        role="tool" if role == "function" else role,
        content=text or message.get("refusal") or "",
        reasoning=next((message[key] for key in _THOUGHT_KEYS if message.get(key)), "")
        or thoughts
        or _details(message),
        tool_calls=tuple(_call(call, f"{path}/tool_calls/{index}") for index, call in enumerate(calls)),
        tool_call_id=message.get("tool_call_id") or "",
        name=message.get("name") or "",
    )


def _content(content: Any) -> tuple[str, str]:
    """Return the text and the thoughts of a message's content."""
    if not isinstance(content, list):
        return content or "", ""
    texts, thoughts = [], []
    for part in content:
        kind = part.get("type")
        if kind in _THOUGHT_PARTS:
            thoughts.append(_thought(part))
        else:
            texts.append(part["refusal"] if kind == "refusal" else part["text"])
    return "".join(texts), "".join(thoughts)


def _thought(part: Document) -> str:
    """Return the text of a part with thoughts: Mistral writes a list of text parts, others a string."""
    inner = part.get("thinking") or part.get("text") or part.get("reasoning")
    return inner if isinstance(inner, str) else _joined(inner)


def _details(message: Document) -> str:
    """Return the text in OpenRouter's list of thoughts. Its summaries and encrypted thoughts are ignored."""
    return _joined(message.get("reasoning_details"))


def _joined(parts: object) -> str:
    """Return the texts of a list of parts. The schema does not check thoughts, so other values are ignored here."""
    texts = (part.get("text") for part in parts if isinstance(part, dict)) if isinstance(parts, list) else ()
    return "".join(text for text in texts if isinstance(text, str))


def _call(call: Document, path: str) -> ToolCall:
    if custom := call.get("custom"):
        # A custom tool's input is text, not JSON. Chat templates support only functions: the text becomes an argument.
        return ToolCall(call.get("id") or "", custom["name"], arguments_text({"input": custom.get("input") or ""}))
    function = call.get("function") or call
    if function.get("name") is None:
        raise bad_input(Problem(f"{path}/function", f"required properties at '{path}' are 'function'"))
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        place = f"{path}/function/arguments" if call.get("function") else f"{path}/arguments"
        arguments = _object(arguments or "{}", place)
    return ToolCall(call.get("id") or "", function["name"], arguments_text(arguments or {}))


def arguments_text(arguments: Document) -> str:
    """Return the arguments of a call as the text of a JSON object."""
    text = json.dumps(arguments, ensure_ascii=False)
    # A string in the arguments may contain half of a surrogate pair, which is not a character.
    return text if text.isascii() else text.encode(errors="replace").decode()


def _object(text: str, path: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict) or is_deeper(value, MAX_DEPTH):
        raise bad_field(path, f"must be a JSON object as text, nested at most {MAX_DEPTH} deep")
    return value
