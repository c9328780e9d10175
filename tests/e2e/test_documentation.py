"""Executes the commands of README.md and docs/getting-started.md against a running stack."""

import os
import re
import signal
import subprocess
import sys

import pytest

from tests.docs.blocks import programs, script
from tests.support.processes import ROOT

# Pages repeat some blocks: each text is executed once.
BLOCKS = list({script(block): block for block in reversed(list(programs())) if script(block)}.values())
# Programs that a block may call. In place of `make run`, a program that waits: the stack of the tests is already running.
# tests/e2e/test_local_stack.py runs the real one.
PROGRAMS = {
    ".venv/bin/tailrace": f'exec {sys.executable} -m tailrace_cli "$@"',
    "bin/make": "exec sleep 100",
}


@pytest.fixture
def folder(tmp_path):
    """A folder with the programs of an installed clone, and a cache to delete."""
    for path, command in PROGRAMS.items():
        program = tmp_path / path
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text(f"#!/bin/bash\n{command}\n")
        program.chmod(0o755)
    (tmp_path / "home" / ".cache" / "tailrace").mkdir(parents=True)
    return tmp_path


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_the_commands_of_a_block_succeed(block, stack, folder):
    text = script(block)
    environment = stack.environment | {
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "HOME": str(folder / "home"),
    }
    text = text.replace("127.0.0.1:8787", stack.http_address).replace("REPOSITORY_URL", str(ROOT))
    command = [sys.executable, "-c", text] if block.language == "python" else ["sh", "-ec", text]
    child = subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        output, errors = child.communicate(timeout=100)
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
    assert child.returncode == 0, output + errors
    if '"stream": true' in text:
        assert re.fullmatch(r'(data: \{"response":.*\n\n)+data: \[DONE\]\n\n', output), output
