"""Finds the version of Tailrace, for metrics and for `tailrace --version`."""

import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def tailrace_version() -> str:
    """Return the version of the installed package, else the one in pyproject.toml, else "unknown"."""
    try:
        return version("tailrace")
    except PackageNotFoundError:  # a container image contains the source folders without an installed package
        project = Path(__file__).parents[1] / "pyproject.toml"
        return str(tomllib.loads(project.read_text())["project"]["version"]) if project.exists() else "unknown"
