"""Paths in the /commands of a chat."""

from pathlib import Path

from tailrace_cli.errors import Failure


def named_path(argument: str, command: str) -> Path:
    """Return the path that a command names. `command`: its name, for the message.

    Raises:
        Failure: There is no path, or no such home directory.
    """
    if not argument:
        raise Failure(f"{command} needs the name of a file.")
    try:
        return Path(argument).expanduser()
    except RuntimeError:
        raise Failure(f"{command} {argument}: there is no such home directory.") from None


def completed_paths(beginning: str) -> list[str]:
    """Return the paths of existing files and folders with this beginning. Names of folders end with a slash."""
    folder, _, name = beginning.rpartition("/")
    prefix = f"{folder}/" if "/" in beginning else ""
    try:
        found = sorted(Path(prefix or ".").expanduser().iterdir())
    except (OSError, RuntimeError):  # RuntimeError: there is no such user, or this one has no home
        return []
    return [f"{prefix}{path.name}{'/' if path.is_dir() else ''}" for path in found if path.name.startswith(name)]
