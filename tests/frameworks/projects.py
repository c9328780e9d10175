"""Copies a project to a folder beside a clone of Tailrace, with its packages from a cache outside of the repository.

A project is installed once: its installed packages are kept under a hash of its package.json and lock file. A copy shares
their files by hard links, so that a copy takes seconds.
"""

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.clients.node_programs import environment, node_folder
from tests.support.processes import ROOT

_INSTALL_SECONDS = 400


def npm_programs(folder: Path) -> Path:
    """Write programs `npm` and `npx` that run the wheel's npm. Returns the folder, which has to be first in PATH."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("npm", "npx"):
        program = folder / name
        script = node_folder().parent / "lib" / "node_modules" / "npm" / "bin" / f"{name}-cli.js"
        program.write_text(f'#!/bin/sh\nexec "{node_folder() / "node"}" "{script}" "$@"\n')
        program.chmod(0o755)
    return folder


def copy_project(source: Path, folder: Path) -> Path:
    """Copy a project and its packages to `folder`. Beside the copy, `tailrace` is the clone. Returns the copy."""
    project = folder / source.name
    shutil.copytree(source, project, ignore=shutil.ignore_patterns("node_modules", ".*", "dist"))
    if (source / "package.json").exists():
        shutil.copytree(_installed(source), project / "node_modules", symlinks=True, copy_function=_link)
    (folder / "tailrace").symlink_to(ROOT)
    return project


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        # The cache and the folder of the tests may be on different file systems.
        shutil.copy2(source, target)


def _installed(source: Path) -> Path:
    files = [source / name for name in ("package.json", "package-lock.json")]
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in files if file.exists())).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tailrace-tests" / "node"
    result = cache / f"{source.name}-{digest}"
    if not result.exists():
        cache.mkdir(parents=True, exist_ok=True)
        for old in cache.glob(f"{source.name}-*"):
            shutil.rmtree(old, ignore_errors=True)
        fresh = Path(tempfile.mkdtemp(dir=cache, prefix=f".{source.name}-"))
        try:
            _install(source, fresh)
            # Another process may have installed the same packages meanwhile.
            if not result.exists():
                fresh.rename(result)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    return result / "node_modules"


def _install(source: Path, folder: Path) -> None:
    for name in ("package.json", "package-lock.json"):
        if (source / name).exists():
            shutil.copy2(source / name, folder / name)
    npm = node_folder().parent / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    command = [
        node_folder() / "node",
        npm,
        "install",
        "--no-audit",
        "--no-fund",
        "--loglevel=error",
        "--prefer-offline",
    ]
    done = subprocess.run(
        command, cwd=folder, env=environment(), timeout=_INSTALL_SECONDS, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
