"""Runs Python programs for the tests in an environment of its own, because clients need other versions than Tailrace."""

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support.processes import ROOT

PROGRAMS = Path(__file__).parent / "python"
_ENVIRONMENT = ROOT / ".venv-clients"
_INSTALL_SECONDS = 400
_RUN_SECONDS = 100
# LiteLLM would otherwise look for prices and a tokenizer on the internet, for half a minute.
_QUIET = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def installed() -> Path:
    """Return the Python of an environment with the packages of requirements.txt. Later runs use the same environment."""
    requirements = PROGRAMS / "requirements.txt"
    stamp, python = _ENVIRONMENT / ".installed", _ENVIRONMENT / "bin" / "python"
    _ENVIRONMENT.mkdir(exist_ok=True)
    # Tests may run in several processes.
    with (_ENVIRONMENT / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not stamp.is_file() or stamp.read_text() != requirements.read_text():
            _run([sys.executable, "-m", "venv", _ENVIRONMENT], _INSTALL_SECONDS)
            # Every package is pinned, so that nothing has to be resolved.
            command = [python, "-m", "pip", "install", "--quiet", "--no-deps", "--disable-pip-version-check"]
            _run([*command, "-r", requirements], _INSTALL_SECONDS)
            stamp.write_text(requirements.read_text())
    return python


def run(python: Path, program: str, *arguments: str) -> Any:
    """Run a program of this folder. Returns the JSON of the last line that it prints."""
    output = _run([python, PROGRAMS / program, *arguments], _RUN_SECONDS, env={**os.environ, **_QUIET})
    return json.loads(output.splitlines()[-1])


def _run(command: list[object], seconds: float, **options: Any) -> str:
    done = subprocess.run([str(part) for part in command], timeout=seconds, capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
