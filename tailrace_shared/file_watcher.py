"""Files that are reloaded when they change, such as certificates and token lists."""

import logging
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Generic, TypeVar

from tailrace_shared.config_errors import ConfigurationError

logger = logging.getLogger(__name__)

Content = TypeVar("Content")
_Version = list[tuple[int, int, int, int] | None]


class ReloadableFile(Generic[Content]):
    """The parsed content of one or several files. The last valid content stays active until a newer valid one exists.

    Attributes:
        content: The result of the last successful `read`.
    """

    def __init__(self, paths: Iterable[Path], read: Callable[[], Content], *, min_seconds: float = 0.0) -> None:
        """Read the files.

        Args:
            paths: The files; `read` is called again when one of them changes.
            read: Returns the parsed content or raises ConfigurationError.
            min_seconds: Shortest time between two checks of the files, in seconds.

        Raises:
            ConfigurationError: `read` raised it.
        """
        self._paths = tuple(paths)
        self._read = read
        self._min_seconds = min_seconds
        self._version = self._current_version()
        self._checked = time.monotonic()
        self.content = read()

    def reload_if_changed(self) -> bool:
        """Check the files and read them again if they changed. Return True if `content` is new.

        Invalid content is logged once for each change; `content` then stays as it was.
        """
        if time.monotonic() - self._checked < self._min_seconds:
            return False
        self._checked = time.monotonic()
        version = self._current_version()
        if version == self._version:
            return False
        content, problem = None, None
        try:
            content = self._read()
        except ConfigurationError as error:
            problem = error
        if self._current_version() != version:
            return False  # another process is still writing; the next check reads again
        self._version = version
        if content is None:
            logger.warning("%s; the last valid version stays active", str(problem).rstrip("."))
            return False
        self.content = content
        logger.info("reloaded: %s", ", ".join(map(str, self._paths)))
        return True

    def _current_version(self) -> _Version:
        return [_version(path) for path in self._paths]


def _version(path: Path) -> tuple[int, int, int, int] | None:
    """Return values that differ for each version of the file and of its permissions; None if it cannot be found."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino
