"""Creates the peers' virtual environments under `.bench/` once, logs each step, and reports a failure in one sentence.

For a peer that uses torch, torch is installed first, by itself and at a pinned version. Otherwise, a package's
dependencies could select a build of torch with CUDA, a download of gigabytes.
"""

import os
import subprocess
import sys
from collections.abc import Mapping

from benchmarks.processes import BENCH, LOGS, last_line

TORCH_VERSION = "2.13.0"
_SETUP_SECONDS = 3600.0


class SetupFailed(Exception):
    """Raised if a peer cannot be installed on this machine. The message contains the reason."""


class Environment:
    """A peer's virtual environment. `recipe` names packages and build options; after a change, `is_ready` is False."""

    def __init__(self, name: str, recipe: str) -> None:
        self.name = name
        self.folder = BENCH / name
        self.python = self.folder / "bin" / "python"
        self.log = LOGS / f"setup-{name}.log"
        self._stamp = self.folder / "recipe.txt"
        self._recipe = recipe

    @property
    def is_ready(self) -> bool:
        """True if the environment was completed with the same recipe."""
        return self._stamp.is_file() and self._stamp.read_text() == self._recipe

    def create(self) -> None:
        """Create the environment with a current pip, in place of an existing one. Raises SetupFailed."""
        LOGS.mkdir(parents=True, exist_ok=True)
        print(f"  setting up .bench/{self.name} (once; log: .bench/logs/{self.log.name})", flush=True)
        self._run([sys.executable, "-m", "venv", "--clear", str(self.folder)], {})
        self.pip("install", "--upgrade", "pip>=25")

    def finish(self) -> None:
        """Mark the environment as complete."""
        self._stamp.write_text(self._recipe)

    def install_torch(self) -> None:
        """Install torch from TORCH_INDEX_URL or pip's default. Raises SetupFailed."""
        index = os.environ.get("TORCH_INDEX_URL")
        self.pip("install", *(["--index-url", index] if index else []), f"torch=={TORCH_VERSION}")

    def pip(self, *arguments: str, environment: Mapping[str, str] | None = None) -> None:
        """Run pip with these arguments. Raises SetupFailed."""
        self._run([str(self.python), "-m", "pip", "--disable-pip-version-check", *arguments], environment or {})

    def output(self, code: str) -> str:
        """Return the output of a line of Python in this environment. Raises SetupFailed."""
        command = [str(self.python), "-c", code]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        if done.returncode:
            raise SetupFailed(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "python failed")
        return done.stdout.strip()

    def _run(self, command: list[str], environment: Mapping[str, str]) -> None:
        with self.log.open("ab") as log:
            try:
                done = subprocess.run(
                    command,
                    env={**os.environ, **environment},
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    timeout=_SETUP_SECONDS,
                    check=False,
                )
            except (OSError, subprocess.TimeoutExpired) as error:
                raise SetupFailed(f"{error}") from error
        if done.returncode:
            raise SetupFailed(f"setting up failed: {last_line(self.log)}")
