"""Server-sent events as bytes. Knows the framing; knows nothing of what the events mean."""

import json
from collections.abc import Mapping

DONE = b"data: [DONE]\n\n"

# JSON's own line ends are escaped already. These three end a line for Python's str.splitlines, with which some clients
# cut a stream into lines; escaped, they mean the same.
_LINE_ENDS = str.maketrans({"\x85": "\\u0085", "\u2028": "\\u2028", "\u2029": "\\u2029"})


def event(payload: Mapping[str, object]) -> bytes:
    """One event: `data: `, the payload as compact JSON in UTF-8, and a blank line."""
    text = json.dumps(payload, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return f"data: {text.translate(_LINE_ENDS)}\n\n".encode()
