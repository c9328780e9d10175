"""Ends a service after the process that started it has been killed, for example by `kill -9`.

`tailrace serve` holds the writing end of a pipe, and each service the reading end. The system closes the writing end when
the command ends, whatever the reason, and the service then receives SIGTERM.
"""

import os
import signal
import threading
from collections.abc import MutableMapping

# The number of the reading end. `tailrace serve` sets this variable for the services; it is not a setting.
VARIABLE = "TAILRACE_PARENT_PIPE"


def watch_parent(environment: MutableMapping[str, str] = os.environ) -> None:
    """Start a thread that sends SIGTERM to this process when the pipe named in the environment closes, if there is one.

    The variable is removed from `environment`, because child processes do not inherit the pipe.
    """
    number = environment.pop(VARIABLE, "")
    if not number.isdecimal():
        return
    pipe = int(number)
    os.set_inheritable(pipe, False)

    def wait() -> None:
        os.read(pipe, 1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="parent", daemon=True).start()
