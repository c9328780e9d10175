"""Server-sent events as bytes. Knows the framing and the form of the one event that is frequent; no other event's."""

import json
from collections.abc import Callable, Mapping

DONE = b"data: [DONE]\n\n"

# JSON's own line ends are escaped already. These three end a line for Python's str.splitlines, with which some clients
# cut a stream into lines; escaped, they mean the same.
_LINE_ENDS = str.maketrans({"\x85": "\\u0085", "\u2028": "\\u2028", "\u2029": "\\u2029"})


# One encoder for all events: json.dumps would make one for each.
_to_json: Callable[[object], str] = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode


def event(payload: Mapping[str, object]) -> bytes:
    """One event: `data: `, the payload as compact JSON in UTF-8, and a blank line."""
    return f"data: {_to_json(payload).translate(_LINE_ENDS)}\n\n".encode()


def text_event(text: str, padding: str | None) -> bytes:
    """`event({"response": text})`, with `"p": padding` if there is one, which is letters and digits alone.

    There is one for each token of every stream, so only the text goes through the encoder: a tenth of the time.
    """
    if padding is not None:
        return f'data: {{"response":{literal(text)},"p":"{padding}"}}\n\n'.encode()
    return f'data: {{"response":{literal(text)}}}\n\n'.encode()


def literal(text: str) -> str:
    """A JSON string that no client takes for more than one line."""
    encoded = _to_json(text)
    return encoded if encoded.isascii() else encoded.translate(_LINE_ENDS)
