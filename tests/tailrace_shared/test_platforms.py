"""Windows, where the inference server does not run: one sentence at start."""

import sys

import pytest

import inference_server.__main__
from tailrace_cli.errors import Failure
from tailrace_cli.serving.options import ServeOptions
from tailrace_cli.serving.serve import serve


@pytest.fixture(autouse=True)
def windows(monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")


def test_the_server_says_so_and_ends(capsys):
    assert inference_server.__main__.main() == 1
    output = capsys.readouterr().err
    assert "does not run on Windows itself: use WSL 2 or Docker Desktop" in output and output.count("\n") == 1


def test_serve_says_so_before_it_looks_at_anything_else():
    with pytest.raises(Failure, match="use WSL 2 or Docker Desktop"):
        serve(ServeOptions())
