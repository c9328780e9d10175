"""Embeddings through the SDKs and frameworks that agents use: the same vectors in every shape."""

import json
import subprocess

import pytest

from tests.clients import python_programs
from tests.clients.conftest import ACCOUNT
from tests.clients.node_programs import environment
from tests.e2e.stack import OTHER_SERVER

pytestmark = [
    pytest.mark.clients,
    pytest.mark.timeout(500),
    pytest.mark.skipif(bool(OTHER_SERVER), reason="the other server's catalog has no embedding model"),
]

MODEL = "@cf/baai/bge-small-en-v1.5"


def dot(one, other):
    return sum(a * b for a, b in zip(one, other, strict=True))


def check(vectors):
    """Check that all clients got the same vectors, and that the first two texts are closer than the first and the third."""
    reference = vectors["openai"]
    for client, found in vectors.items():
        for vector, expected in zip(found, reference, strict=False):
            assert len(vector) == 384, client
            assert vector == pytest.approx(expected, abs=1e-4), client
    first, second, third = reference
    assert dot(first, second) > dot(first, third)


def test_python_clients_get_the_same_vectors(stack):
    python = python_programs.installed()
    check(python_programs.run(python, "embeddings_client.py", f"http://{stack.http_address}", MODEL, ACCOUNT))


def test_node_clients_get_the_same_vectors(stack, programs):
    command = ["node", "embeddings.mjs", f"http://{stack.http_address}", MODEL, ACCOUNT]
    done = subprocess.run(command, cwd=programs, env=environment(), capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    check(json.loads(done.stdout))
