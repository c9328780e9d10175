"""Encodes and decodes the thoughts in reasoning items, which clients return with the next request.

Some clients return only the summary and `encrypted_content`. OpenAI encrypts the thoughts in the latter field. Tailrace
only encodes them.
"""

import base64
import binascii
from collections.abc import Mapping
from typing import Any

# Beginning of the ids of reasoning items, here and at OpenAI.
REASONING_ID = "rs_"
_PREFIX = "tailrace-thoughts-1."


def sealed(thoughts: str) -> str:
    """Return thoughts as a value of `encrypted_content`: opaque to clients, but not secret."""
    return _PREFIX + base64.urlsafe_b64encode(thoughts.encode()).decode()


def thoughts_of(item: Mapping[str, Any]) -> str:
    """Return the thoughts of a reasoning item: its content, else its own `encrypted_content`, else its summary."""
    return _joined(item.get("content")) or _unsealed(item.get("encrypted_content")) or _joined(item.get("summary"))


def _joined(parts: object) -> str:
    if not isinstance(parts, list):
        return ""
    texts = [part.get("text") for part in parts if isinstance(part, Mapping)]
    return "\n\n".join(text for text in texts if isinstance(text, str))


def _unsealed(value: object) -> str:
    """Return the thoughts in `value`; empty for content that another service encrypted."""
    if not isinstance(value, str) or not value.startswith(_PREFIX):
        return ""
    try:
        return base64.urlsafe_b64decode(value.removeprefix(_PREFIX)).decode()
    except (binascii.Error, UnicodeDecodeError, ValueError):
        return ""
