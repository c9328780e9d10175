"""Text files that /file attaches to the next question of a chat."""

import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tailrace_cli.errors import Failure
from tailrace_cli.output import size
from tailrace_cli.prompt import file_part

# Largest file, as in the playground. Most models have a smaller context, and the bridge limits the body of a request.
_MAX_BYTES = 200_000


@dataclass(frozen=True, slots=True)
class TextFile:
    """A file that is attached to a question.

    Attributes:
        path: The file.
        text: Its content.
        num_bytes: Its size.
    """

    path: Path
    text: str
    num_bytes: int

    def __str__(self) -> str:
        return f"{self.path.name} ({size(self.num_bytes)})"


def read_file(path: Path) -> TextFile:
    """Read a file.

    Raises:
        Failure: The file cannot be read, has more than 200 kB, or is not text.
    """
    try:
        # Other files, such as pipes and devices, may have no end.
        if not stat.S_ISREG(path.stat().st_mode):
            raise Failure(f"/file {path}: it is {'a folder' if path.is_dir() else 'no regular file'}.")
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
            num_bytes = max(len(data), path.stat().st_size)
    except (OSError, ValueError) as error:  # ValueError: the name has a zero byte
        raise Failure(f"/file {path}: {getattr(error, 'strerror', None) or error}.") from None
    if len(data) > _MAX_BYTES:
        raise Failure(f"/file {path}: it has {num_bytes} bytes, and at most {_MAX_BYTES} can be attached.")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise Failure(f"/file {path}: it is not UTF-8 text.") from None
    if "\0" in text:
        raise Failure(f"/file {path}: it is not text, because it contains zero bytes.")
    if not text.strip():
        raise Failure(f"/file {path}: it is empty.")
    return TextFile(path.absolute(), text, num_bytes)


def with_files(files: Sequence[TextFile], question: str) -> str:
    """Return the prompt for a question: the files with their names, then the question."""
    return "\n\n".join([*(file_part(file.path.name, file.text) for file in files), question])
