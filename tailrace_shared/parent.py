"""Two pipes between `tailrace serve` and its services.

The first one ends a service after the command has been killed, for example by `kill -9`. The command holds its writing end,
and each service the reading end. The system closes the writing end when the command ends for any reason, and the
service then receives SIGTERM.

Through the second one, a service reports its port as soon as it listens there. The command thus learns a port that the
system selected, and cannot mistake another stack for its own.
"""

import os
import signal
import threading
from collections.abc import MutableMapping

# Variables with the file descriptors of a service's pipe ends. `tailrace serve` sets them; they are not settings.
VARIABLE = "TAILRACE_PARENT_PIPE"
PORT_VARIABLE = "TAILRACE_PORT_PIPE"


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


def report_port(port: int, environment: MutableMapping[str, str] = os.environ) -> None:
    """Write the port at which this service listens to the pipe named in the environment, if there is one.

    The variable is removed from `environment`, and the pipe is closed.
    """
    number = environment.pop(PORT_VARIABLE, "")
    if not number.isdecimal():
        return
    try:
        with open(int(number), "w") as pipe:
            pipe.write(f"{port}\n")
    except OSError:  # the command has ended
        return
