"""Starts a service as a process of `tailrace serve`, and reads the port that it reports through a pipe."""

import os
import select
import subprocess
import sys
from collections.abc import Mapping

from tailrace_cli.environment import DEFAULT_GRPC_ADDRESS, DEFAULT_HTTP_ADDRESS, variable
from tailrace_shared.parent import PORT_VARIABLE, VARIABLE

Process = subprocess.Popen[bytes]

_DEFAULTS = {"TAILRACE_GRPC_ADDRESS": DEFAULT_GRPC_ADDRESS, "TAILRACE_HTTP_ADDRESS": DEFAULT_HTTP_ADDRESS}
_MAX_DIGITS = 16


class Service:
    """A running service.

    Attributes:
        process: The process.
        variable: The setting with the service's address.
        address: The address, with the service's own port once it is known.
    """

    def __init__(self, module: str, name: str, environment: Mapping[str, str], parent_pipe: int) -> None:
        """Start the service.

        Args:
            module: Name of the Python module.
            name: The setting with the service's address.
            environment: Environment variables of the process.
            parent_pipe: Reading end of the pipe that closes when this process ends.
        """
        self.variable = name
        self.address = environment.get(name) or variable(name, _DEFAULTS[name])
        self._port_pipe, writing = os.pipe()
        self._port = 0
        self.process: Process = subprocess.Popen(
            [sys.executable, "-m", module],
            # In a separate session: Ctrl-C then reaches only this process, which stops both services in order.
            start_new_session=True,
            env={**environment, VARIABLE: str(parent_pipe), PORT_VARIABLE: str(writing)},
            pass_fds=(parent_pipe, writing),
        )
        os.close(writing)

    def wait_for_port(self) -> None:
        """Wait until the service listens, or until its process ends."""
        self._read()

    def is_listening(self) -> bool:
        """Return True if the service has reported its port. Does not wait."""
        if not self._port and select.select([self._port_pipe], [], [], 0)[0]:
            self._read()
        return self._port > 0

    def _read(self) -> None:
        text = os.read(self._port_pipe, _MAX_DIGITS).decode()
        if text.strip().isdecimal():
            self._port = int(text)
            self.address = f"{self.address.rpartition(':')[0]}:{self._port}"
