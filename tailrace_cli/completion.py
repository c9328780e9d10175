"""The command `tailrace completion`: prints a shell's completion script, which completes commands, options and files."""

import argparse

from tailrace_cli.errors import Failure


def script(parser: argparse.ArgumentParser, shell: str) -> str:
    """Return the completion script of a shell: "bash", "zsh" or "fish".

    Raises:
        Failure: The package that writes such scripts is not installed.
    """
    try:
        import shtab
    except ImportError:
        raise Failure(
            "The package shtab, which writes completion scripts, is not installed: pip install shtab"
        ) from None
    return shtab.complete(parser, shell)
