"""The command's reading of an event stream."""

import pytest

from tailrace_cli.client import ReplyStats
from tailrace_cli.errors import Refusal
from tailrace_cli.rest import _texts

COMMENT = b": keep-alive\n\n"
COMMENTED = COMMENT.join([b"", b'data: {"response":"New"}\n\n', b'data: {"response":" York"}\n\n', b"data: [DONE]\n\n"])


def test_comments_of_a_silent_stream_are_skipped():
    assert list(_texts(COMMENTED.splitlines(keepends=True), ReplyStats())) == ["New", " York"]


def test_comments_alone_are_not_the_end_of_a_stream():
    with pytest.raises(Refusal, match="too early"):
        list(_texts([b": keep-alive\n", b"\n"], ReplyStats()))
