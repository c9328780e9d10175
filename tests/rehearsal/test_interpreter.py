"""The whole engine on a simulated GPU with the Triton kernels themselves, in Triton's interpreter."""

import os
import subprocess
import sys

import pytest

from tests.support.processes import ROOT


@pytest.mark.rehearsal
@pytest.mark.timeout(300)
def test_replies_by_the_kernels_are_those_of_transformers() -> None:
    # Triton reads the variable when it is imported, so the tests run in a process of their own.
    chosen = ["tests/rehearsal/test_short.py", "-k", "16-bit or modules", "--timeout", "250"]
    command = [sys.executable, "-m", "pytest", "-q", *chosen]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280)
    assert ended.returncode == 0, ended.stdout
    assert "2 passed" in ended.stdout
