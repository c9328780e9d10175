"""Splits the command line and the standard input of `tailrace run` into model and prompt.

Follows the conventions of the commands ollama and llm.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from tailrace_cli.errors import Failure


def divide(words: Sequence[str], model: str | None) -> tuple[str, list[str]]:
    """Return the name of the model, empty for the default one, and the words of the prompt.

    Args:
        words: The words of the command line. The first one is the model unless it contains a space. Only prompts
            contain spaces.
        model: The model of the option -m; then all words are the prompt.
    """
    if model is not None:
        return model, list(words)
    if not words or any(character.isspace() for character in words[0]):
        return "", list(words)
    return words[0], list(words[1:])


def read_prompt(words: Sequence[str], files: Sequence[str] = ()) -> str:
    """Return the prompt: the files, then standard input unless it is a terminal, then the words.

    Spaces join the words, and blank lines separate the parts. A single word `-` selects standard input, even if it is a
    terminal.

    Args:
        words: The words of the command line.
        files: Names of text files. The prompt has each name before the file's text.

    Raises:
        Failure: Files, standard input and words are empty, or one of them cannot be read or is not text.
    """
    is_explicit = list(words) == ["-"]
    text = " ".join([] if is_explicit else words)
    piped = _piped() if sys.stdin is not None and (is_explicit or not sys.stdin.isatty()) else ""
    parts = [*map(_attached, files), *([piped.rstrip() if text else piped] if piped.strip() else [])]
    prompt = "\n\n".join([*parts, text] if text else parts)
    if not prompt.strip():
        raise Failure("The prompt is empty.")
    return prompt


def _piped() -> str:
    """Return standard input. Raises Failure if it cannot be read or is not text."""
    try:
        text = sys.stdin.read()
        text.encode()  # in some locales Python represents other bytes as lone surrogates
        return text
    except UnicodeError:
        raise Failure("The standard input is not UTF-8 text.") from None
    except OSError as error:
        raise Failure(f"The standard input cannot be read: {error.strerror}.") from None


def _attached(name: str) -> str:
    """Return a file's name and text as a part of the prompt. Raises Failure if it cannot be read or is not text."""
    try:
        text = Path(name).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise Failure(f"-f {name}: it is not UTF-8 text.") from None
    except (OSError, ValueError) as error:
        raise Failure(f"-f {name}: {getattr(error, 'strerror', None) or error}.") from None
    return file_part(Path(name).name, text)


def file_part(name: str, text: str) -> str:
    """Return the part of a prompt for a text file. `name`: the file's name without its folder."""
    return f"{name}:\n{text.rstrip()}"


def schema_text(option: str | None, *, name: str = "--schema") -> str | None:
    """Return the JSON Schema of an option, which is JSON or names a file.

    Args:
        option: The value of the option; None: the option is not used.
        name: The option, for error messages.

    Raises:
        Failure: The file cannot be read, or the schema is not a JSON object.
    """
    if option is None:
        return None
    text = option
    if not option.lstrip().startswith("{"):
        try:
            text = Path(option).expanduser().read_text(encoding="utf-8")
        except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: there is no such home directory
            reason = getattr(error, "strerror", None) or error
            raise Failure(f"{name} {option} is neither a JSON object nor a file that can be read ({reason}).") from None
    try:
        is_object = isinstance(json.loads(text), dict)
    except (ValueError, RecursionError) as error:
        raise Failure(f"{name} is not JSON: {error}.") from None
    if not is_object:
        raise Failure(f"{name} is not a JSON object.")
    return text
