"""Files that are read anew when they change. Knows nothing of what is in them."""

import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Generic, TypeVar

from inference_server.errors import ConfigurationError

logger = logging.getLogger(__name__)

Content = TypeVar("Content")
_Version = list[tuple[int, int, int] | None]


class Watched(Generic[Content]):
    """What `read` makes of `paths`. Once it was good, it stays in force until there is something as good.

    read: returns the content or raises ConfigurationError, whose sentence is then logged; at the beginning it is raised.
    """

    def __init__(self, paths: Iterable[Path], read: Callable[[], Content]) -> None:
        self._paths = tuple(paths)
        self._read = read
        self._version = self._look()
        self.content = read()

    def renew(self) -> bool:
        """Look at the files, and read them if they have changed. Returns whether `content` is new."""
        version = self._look()
        if version == self._version:
            return False
        content, problem = None, None
        try:
            content = self._read()
        except ConfigurationError as error:
            problem = error
        if self._look() != version:
            return False  # somebody is still writing; the next look reads again
        self._version = version
        if content is None:
            logger.warning("%s; what was read before stays in force", problem)
            return False
        self.content = content
        logger.info("read anew: %s", ", ".join(map(str, self._paths)))
        return True

    def _look(self) -> _Version:
        return [_version(path) for path in self._paths]


def _version(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
