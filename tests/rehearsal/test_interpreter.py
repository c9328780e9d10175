"""The whole engine on a simulated GPU with the Triton kernels themselves, in Triton's interpreter."""

import os
import subprocess
import sys

import pytest

from tests.support.processes import ROOT


@pytest.mark.rehearsal
@pytest.mark.parametrize("kind", ["16-bit", "modules"])
def test_replies_by_the_kernels_are_those_of_transformers(kind: str) -> None:
    # Triton reads the variable when it is imported, so the tests run in a process of their own.
    command = [sys.executable, "-m", "pytest", "-q", "tests/rehearsal/test_short.py", "-k", kind]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100)
    assert ended.returncode == 0, ended.stdout
    assert "1 passed" in ended.stdout
