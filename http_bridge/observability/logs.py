"""Log lines: text for a terminal, or a JSON object a line for what collects them.

    _logger.info("%(route)s: %(status)d", fields)   # a single dict: the fields of the line

The text form appends as name=value what the message does not show; in the JSON form all fields are keys. Fields may hold
callers' texts: they are cut, and what a terminal would obey is replaced in the text form and escaped in the other.
"""

import json
import logging
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Literal

_SERVICE = "http_bridge"
_MAX_TEXT = 200
_PLAIN = re.compile(r"[\w./@:+-]+", re.ASCII)


def configure(level: str, form: Literal["text", "json"]) -> None:
    """All that is logged in this process, by libraries and warnings too, goes to stderr in this form."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if form == "json" else TextLines())
    logging.basicConfig(level=level.upper(), handlers=[handler])
    logging.captureWarnings(True)


class TextLines(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s bridge: %(message)s", datefmt="%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:
        if fields := _fields(record):
            shown = {name: _harmless(value) if isinstance(value, str) else value for name, value in fields.items()}
            more = [
                f" {name}={_value(value)}"
                for name, value in shown.items()
                if value is not None and f"%({name})" not in record.msg
            ]
            record.message = record.msg % shown + "".join(more)
        return super().formatMessage(record)


class JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = _fields(record)
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {
            "time": time.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "service": _SERVICE,
            "logger": record.name,
            "message": record.msg % fields if fields else record.getMessage(),
            **fields,
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def _fields(record: logging.LogRecord) -> dict[str, object]:
    """Other libraries may log a dict as well, but their message does not name its keys."""
    if not isinstance(record.args, Mapping) or "%(" not in str(record.msg):
        return {}
    return {name: value[:_MAX_TEXT] if isinstance(value, str) else value for name, value in record.args.items()}


def _harmless(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text)


def _value(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text, ensure_ascii=False)
