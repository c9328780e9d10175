"""Standard output of the command: writes text and converts a failed write to an error message.

Does not depend on a service.
"""

import os
import sys

from tailrace_cli.errors import Failure


def write(text: str = "", *, end: str = "\n") -> None:
    """Write `text` and `end` to standard output immediately.

    After a failure all further output is discarded, so that Python does not report it again at exit.

    Raises:
        BrokenPipeError: The program that reads the output has ended.
        Failure: The output cannot be written, for example because the disk is full.
    """
    try:
        print(text, end=end, flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            raise
        raise Failure(f"Cannot write to standard output: {error.strerror}.") from None
