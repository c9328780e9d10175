"""Tests against a real model. The fixtures start Tailrace with the first test that needs it."""

import os

import pytest
from answers import capital


@pytest.fixture(autouse=True)
def local_model(monkeypatch, tailrace_server):
    monkeypatch.setenv("OPENAI_BASE_URL", tailrace_server.openai_url)
    monkeypatch.setenv("OPENAI_API_KEY", os.environ.get("TAILRACE_TOKEN", "any-key"))


def test_the_capital_of_japan():
    assert "Tokyo" in capital("Japan")


def test_a_reply_is_streamed(tailrace_client):
    pieces = list(tailrace_client.stream("Where is New York?", max_tokens=20).texts())
    assert len(pieces) > 1


def test_a_question_that_is_too_long_is_refused(tailrace_client):
    with pytest.raises(Exception, match="5021|too long|tokens"):
        tailrace_client.run("word " * 4000)
