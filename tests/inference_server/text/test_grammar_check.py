"""Costly grammars: refused in time, checked in a process that may be killed, and compiled once."""

import json
import os
import signal
import subprocess
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from inference_server.text import grammar
from inference_server.text.grammar import GrammarError, Grammars
from inference_server.text.grammar_check import GrammarCheck, is_cheap
from inference_server.text.grammar_worker import startable
from tests.support.hostile_schemas import HOSTILE_SCHEMAS
from tests.support.models.tiny_models import sentencepiece_tokenizer

PATTERN = {"type": "string", "pattern": "^[a-z]{2}$"}
# Checks wait at most 1.5 s for their result; the rest allows for a busy machine.
MAX_SECONDS = 6.0


@pytest.fixture(scope="module")
def grammars():
    tokenizer = sentencepiece_tokenizer()
    return Grammars(tokenizer, vocab_size=len(tokenizer))


def worker_ids() -> list[int]:
    found = subprocess.run(["pgrep", "-P", str(os.getpid()), "-f", "grammar_worker"], capture_output=True, text=True)
    return [int(line) for line in found.stdout.split()]


@pytest.mark.parametrize("name", ["exponential references", "a huge enum", "huge counts", "recursive alternatives"])
def test_a_hostile_schema_is_answered_in_time(grammars, name):
    started = time.monotonic()
    try:
        assert grammars.json_schema(HOSTILE_SCHEMAS[name]).allowed().any()
    except GrammarError as error:
        assert "complex" in str(error) or "too large" in str(error)
    assert time.monotonic() - started < MAX_SECONDS


def test_a_schema_that_compiles_for_seconds_is_refused(grammars):
    with pytest.raises(GrammarError, match="takes too long to compile"):
        grammars.json_schema({"type": "integer", "multipleOf": 999_983})


def test_a_compilation_that_takes_much_memory_is_refused(grammars, monkeypatch):
    check = GrammarCheck(grammars._tokenizer.backend_tokenizer.to_str, grammars._check._setup)
    check._setup["memory_bytes"] = 2**20
    with pytest.raises(ValueError, match="too large"):
        check.run(json.dumps({"grammars": [{"json_schema": {"enum": [str(i) for i in range(50_000)]}}]}))


def test_a_worker_that_was_killed_is_started_again(grammars):
    grammars.json_schema(PATTERN)
    for worker in worker_ids():
        os.kill(worker, signal.SIGKILL)
    assert grammars.json_schema({**PATTERN, "maxLength": 2}).allowed().any()


def test_results_are_read_while_a_grammar_is_sent(grammars):
    grammars.json_schema({**PATTERN, "minLength": 2})
    worker = grammars._check._worker
    future = worker._waiting[-1] = Future()
    with worker._sending:
        reading = threading.Thread(target=worker.take, args=({"id": -1, "bytes": 1},), daemon=True)
        reading.start()
        reading.join(2)
        assert future.done()
    del worker._waiting[-1]


def test_the_number_of_grammars_that_are_compiled_together_is_limited():
    assert startable(range(100), 0) == list(range(16))
    assert startable(range(100), 14) == [0, 1]
    assert startable(range(100), 16) == []


def test_more_grammars_than_are_compiled_together_are_all_answered(grammars):
    with ThreadPoolExecutor(40) as threads:
        schemas = [{"type": "string", "pattern": f"^a{{{number}}}$"} for number in range(1, 41)]
        assert all(constraint.allowed().any() for constraint in threads.map(grammars.json_schema, schemas))


def test_the_worker_ends_with_its_grammars():
    tokenizer = sentencepiece_tokenizer()
    before = set(worker_ids())
    own = Grammars(tokenizer, vocab_size=len(tokenizer))
    own.json_schema(PATTERN)
    assert set(worker_ids()) - before
    del own
    assert not set(worker_ids()) - before


@pytest.mark.parametrize(
    ("schema", "cheap"),
    [
        ('{"type": "object", "properties": {"a": {"type": "integer", "minimum": 1}}}', True),
        ('{"properties": {"pattern_of_life": {"type": "string"}}}', True),
        ('{"pattern": "a"}', False),
        ('{"multipleOf": 3}', False),
        ('{"maxItems": 100000}', False),
        ('{"maximum": 1e9}', False),
        ('{"enum": [' + '"a", ' * 3000 + '"b"]}', False),
        ("V: /(?s:.*)/ & /[a-z]+/", False),
        ('{"anyOf": [{"type": "string"}, {"type": "null"}], "title": "A", "default": null}', True),
        ('{"$defs": {"a": {"type": "string"}}, "$ref": "#/$defs/a"}', True),
        ('{"items": {"$ref": "#/$defs/a", "anyOf": [{}, {}]}}', False),
        ('{"items": {"$ref": "#/$defs/a", "maxLength": 3}}', False),
        ('start: a\na: %json {"anyOf": [{}, {}], "properties": {"b": {}}}\n', False),
        ('start: a\na: %json {"anyOf": [{}, {}]}\n', True),
    ],
)
def test_only_short_and_plain_grammars_are_cheap(schema, cheap):
    assert is_cheap(schema) is cheap


def test_a_grammar_is_compiled_once_and_each_reply_has_its_own_state(grammars, monkeypatch):
    schema = {"type": "boolean", "description": "kept"}
    first = grammars.json_schema(schema)
    monkeypatch.setattr(grammars, "_compiled", None)
    second = grammars.json_schema(schema)
    before = second.allowed().tolist()
    first.accept(int(first.allowed().nonzero()[0][0]))
    assert second.allowed().tolist() == before


def test_equal_grammars_that_arrive_together_are_compiled_once(grammars, monkeypatch):
    compiled, calls = grammars._compiled, []

    def slowly(serialized):
        calls.append(serialized)
        time.sleep(0.2)
        return compiled(serialized)

    monkeypatch.setattr(grammars, "_compiled", slowly)
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(grammars.json_schema, [{"type": "boolean", "pattern": "together"}] * 8))
    assert len(calls) == 1
    found[0].accept(int(found[0].allowed().nonzero()[0][0]))
    assert all((other.allowed() == found[1].allowed()).all() for other in found[2:])


def test_each_request_with_a_wrong_grammar_gets_an_error(grammars):
    with ThreadPoolExecutor(8) as threads:
        tasks = [threads.submit(grammars.json_schema, {"type": "string", "pattern": "(?=a)"}) for _ in range(8)]
    for task in tasks:
        with pytest.raises(GrammarError, match="look-ahead"):
            task.result()
    assert not grammars._pending


def test_the_number_of_kept_grammars_is_limited(grammars):
    for number in range(40):
        grammars.json_schema({"const": number})
    assert len(grammars._kept) == 32


def test_a_slow_step_fails_its_reply(grammars, monkeypatch):
    constraint = grammars.json_schema({"type": "object"})
    monkeypatch.setattr(grammar, "_MAX_STEP_SECONDS", 0.0)
    with pytest.raises(GrammarError, match="too long"):
        constraint.allowed()
