"""`tailrace ps` with a fake server."""

import json
import os
import socket

import pytest

from tailrace_cli.client import ModelLine
from tailrace_cli.served import ps


class Served:
    def models(self):
        return [
            ModelLine("@cf/meta/a", "", 4095, 2048, weights="owner/a", precision="int4"),
            ModelLine("@cf/baai/b", "", 512, 0, dimensions=384, weights="b", precision="float32"),
        ]


def test_ps_is_a_table(capsys):
    assert ps(Served(), url="http://example.com:8787", as_json=False) == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["NAME", "WEIGHTS", "PRECISION", "IN", "OUT"],
        ["@cf/meta/a", "owner/a", "int4", "4095", "2048"],
        ["@cf/baai/b", "b", "float32", "512", "384", "numbers"],
    ]


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="only Linux shows the memory of a process")
def test_the_memory_is_that_of_the_process_at_the_grpc_address(capsys, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setenv("TAILRACE_GRPC_ADDRESS", f"127.0.0.1:{listener.getsockname()[1]}")
        ps(Served(), url="http://localhost:1", as_json=True)
    shown = json.loads(capsys.readouterr().out)
    assert shown["memory_bytes"] > 10**6
    assert shown["models"][1] == {
        "name": "@cf/baai/b",
        "weights": "b",
        "precision": "float32",
        "context_length": 512,
        "sequence_length": 0,
        "dimensions": 384,
    }
