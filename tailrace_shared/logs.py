"""Log lines for both services: text for a terminal, or one JSON object per line for log collectors.

    logger.info("run %(request_id)s: %(outcome)s", fields)   # a single dict: the fields of the line

The text format appends, as name=value, every field that the message does not contain, except None. In the JSON format
all fields are keys. Fields may contain text from clients: strings are truncated to 200 characters. The text format
replaces control characters, the JSON format escapes them.
"""

import json
import logging
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Literal

LogFormat = Literal["text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]

_MAX_TEXT = 200
_UNQUOTED = re.compile(r"[\w./@:+-]+", re.ASCII)


def configure(service: str, level: LogLevel, log_format: LogFormat) -> None:
    """Send all log records of this process, and Python warnings, to stderr in `log_format`.

    Args:
        service: Name of the service: "inference_server" or "http_bridge".
        level: Lowest severity that is written.
        log_format: "text" or "json".
    """
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines(service) if log_format == "json" else TextLines(service))
    logging.basicConfig(level=level.upper(), handlers=[handler])
    logging.captureWarnings(True)


class TextLines(logging.Formatter):
    """Formats a record as `HH:MM:SS LEVEL service: message name=value …`."""

    def __init__(self, service: str) -> None:
        # "inference_server" is shown as "server" and "http_bridge" as "bridge".
        short = service.rpartition("_")[2]
        super().__init__(f"%(asctime)s %(levelname)-7s {short}: %(message)s", datefmt="%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Return the line; fields that the message does not contain are appended."""
        if fields := _fields(record):
            shown = {name: _printable(value) if isinstance(value, str) else value for name, value in fields.items()}
            more = [
                f" {name}={_value(value)}"
                for name, value in shown.items()
                if value is not None and f"%({name})" not in record.msg
            ]
            record.message = record.msg % shown + "".join(more)
        return super().formatMessage(record)


class JsonLines(logging.Formatter):
    """Formats a record as one JSON object with time (RFC 3339, UTC), level, service, logger, message and its fields."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        """Return the JSON object as one line."""
        fields = _fields(record)
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {
            "time": time.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "service": self._service,
            "logger": record.name,
            "message": record.msg % fields if fields else record.getMessage(),
            **fields,
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def _fields(record: logging.LogRecord) -> dict[str, object]:
    """Return the record's fields, truncated to the maximum length.

    Other libraries may log a dict too, but their messages do not name its keys: such records have no fields.
    """
    if not isinstance(record.args, Mapping) or "%(" not in str(record.msg):
        return {}
    return {name: value[:_MAX_TEXT] if isinstance(value, str) else value for name, value in record.args.items()}


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text)


def _value(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return text if _UNQUOTED.fullmatch(text) else json.dumps(text, ensure_ascii=False)
