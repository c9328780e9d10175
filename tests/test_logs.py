"""Log lines of both services."""

import json
import logging
import re
import subprocess
import sys

import pytest

from tailrace_shared import logs
from tests.support.processes import ROOT


def record(message: str, *arguments: object, **options) -> logging.LogRecord:
    return logging.makeLogRecord(
        {"name": "a.b", "levelno": 20, "levelname": "INFO", "msg": message, "args": arguments, **options}
    )


def with_fields(message: str, **fields: object) -> logging.LogRecord:
    made = record(message)
    made.args = fields
    return made


def test_text_shows_the_message_and_appends_the_other_fields():
    line = logs.TextLines("http_bridge").format(
        with_fields("run %(id)s", id="x", account="a b", seconds=1.23456, no=None, yes=True)
    )
    assert line.endswith(': run x account="a b" seconds=1.235 yes=true')


def test_json_is_one_object_with_the_time_in_utc():
    line = json.loads(logs.JsonLines("http_bridge").format(with_fields("run %(id)s", id="x", seconds=1.5, no=None)))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("time"))
    told = {
        "level": "info",
        "service": "http_bridge",
        "logger": "a.b",
        "message": "run x",
        "id": "x",
        "seconds": 1.5,
        "no": None,
    }
    assert line == told


@pytest.mark.parametrize("form", ["TextLines", "JsonLines"])
def test_a_callers_text_is_cut_and_stays_in_its_line(form):
    line = getattr(logs, form)("http_bridge").format(
        with_fields("run %(id)s", id="a\n\x1b[2J\u202eb\ud800" + "c" * 500, more="\r\n")
    )
    assert line.isprintable() and len(line) < 700


def test_lines_of_libraries_keep_their_arguments_and_exceptions():
    try:
        raise ValueError("no")
    except ValueError:
        failed = record("%s of %s", 1, 2, exc_info=sys.exc_info())
    line = logs.JsonLines("http_bridge").format(failed)
    assert "\n" not in line
    assert json.loads(line)["message"] == "1 of 2" and "ValueError: no" in json.loads(line)["exception"]
    assert logs.TextLines("http_bridge").format(with_fields("%s", a=1)).endswith("{'a': 1}")


def test_warnings_and_lines_of_libraries_have_the_same_format():
    code = """
import logging, warnings
from tailrace_shared.logs import configure
configure("http_bridge", "warning", "json")
warnings.warn("of Python")
logging.getLogger("uvicorn.error").error("of a library")
logging.getLogger("uvicorn.error").info("of no interest")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=20, check=True
    )
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert [line["logger"] for line in lines] == ["py.warnings", "uvicorn.error"]
