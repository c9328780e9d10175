"""Builds or checks the npm package with the Node of a wheel, so that the machine needs none.

`python -m tests.npm.build` writes build/tailrace-….tgz. `python -m tests.npm.build --check` formats, lints and type-checks.
"""

import subprocess
import sys
from pathlib import Path

from tests.clients.node_programs import environment, node_folder
from tests.support.processes import ROOT

PACKAGE = ROOT / "npm"
NPM = node_folder().parent / "lib" / "node_modules" / "npm" / "bin"
_SECONDS = 300


def npm(folder: Path, *arguments: str) -> None:
    """Run npm in a folder. Raises AssertionError with its output if it fails."""
    command = [node_folder() / "node", NPM / "npm-cli.js", *arguments, "--no-audit", "--no-fund", "--loglevel=error"]
    done = subprocess.run(command, cwd=folder, env=environment(), timeout=_SECONDS, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def main() -> None:
    lock = PACKAGE / "node_modules" / ".package-lock.json"
    if not lock.exists() or lock.stat().st_mtime < (PACKAGE / "package-lock.json").stat().st_mtime:
        npm(PACKAGE, "ci", "--prefer-offline")
        lock.touch()
    if "--check" in sys.argv:
        npm(PACKAGE, "run", "check")
        return
    npm(PACKAGE, "run", "build")
    target = ROOT / "build"
    target.mkdir(exist_ok=True)
    for old in target.glob("tailrace-*.tgz"):
        old.unlink()
    npm(PACKAGE, "pack", "--pack-destination", str(target))


if __name__ == "__main__":
    try:
        main()
    except AssertionError as error:
        sys.exit(str(error))
