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


def read_prompt(words: Sequence[str]) -> str:
    """Return the prompt: standard input, unless it is a terminal, then the words, joined by spaces.

    A single word `-` selects standard input, even if it is a terminal.

    Raises:
        Failure: Standard input and the words are empty.
    """
    is_explicit = list(words) == ["-"]
    text = " ".join([] if is_explicit else words)
    piped = sys.stdin.read() if sys.stdin is not None and (is_explicit or not sys.stdin.isatty()) else ""
    prompt = f"{piped.rstrip()}\n\n{text}" if piped.strip() and text else piped + text
    if not prompt.strip():
        raise Failure("The prompt is empty.")
    return prompt


def schema_text(option: str | None) -> str | None:
    """Return the JSON Schema of the option --schema, which is JSON or names a file.

    Raises:
        Failure: The file cannot be read, or the schema is not JSON.
    """
    if option is None:
        return None
    text = option
    if not option.lstrip().startswith("{"):
        try:
            text = Path(option).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise Failure(
                f"--schema {option} is neither a JSON object nor a file that can be read ({error})."
            ) from None
    try:
        json.loads(text)
    except ValueError as error:
        raise Failure(f"--schema is not JSON: {error}.") from None
    return text
