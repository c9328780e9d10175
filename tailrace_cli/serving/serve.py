"""The command `tailrace serve`: starts both services as processes, and announces them once both are ready.

Options become settings (TAILRACE_*), which both services read from their environment. Ctrl-C, SIGTERM and a closed terminal
(SIGHUP) stop both. The bridge stops first, while the server completes the running replies. Then the server stops. Each
service finishes accepted requests within its grace period. A second signal is forwarded and ends that period. If this
process is killed, both services stop too (tailrace_shared/parent.py).
"""

import http.client
import importlib.util
import json
import logging
import os
import signal
import time
import urllib.request

from tailrace_cli.environment import DEFAULT_GRPC_ADDRESS, DEFAULT_HTTP_ADDRESS, http_address, variable
from tailrace_cli.errors import Failure
from tailrace_cli.serving.announcement import announce
from tailrace_cli.serving.options import ServeOptions, check_models, replays_only, settings_of
from tailrace_cli.serving.service import Process, Service
from tailrace_shared.config_errors import ConfigurationError
from tailrace_shared.listeners import PortInUse, listen
from tailrace_shared.platforms import WINDOWS_SENTENCE, is_windows, why_torch_is_missing
from tailrace_shared.variables import PREFIX, check_variables, unknown_variables

HOW_TO_INSTALL = "To serve, in a clone of Tailrace: pip install '.[server,bridge]', or make run."

# Seconds between two checks of the processes, before and after both are ready.
_START_POLL_SECONDS, _POLL_SECONDS = 0.1, 0.2
# Shells report 128 + n for a program that signal n killed.
_SIGNAL_EXIT_CODE = 128
_NAMES = ("inference server", "bridge")
# Packages that the services need. The base installation, with the clients only, does not contain them.
_REQUIRED = ("torch", "transformers", "starlette", "uvicorn")
_MODEL_PACKAGES = ("torch", "transformers")  # not needed to replay recordings
# Requests to this machine bypass proxies.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))
logger = logging.getLogger(__name__)


class _Stopped(BaseException):
    """SIGINT, SIGTERM or SIGHUP arrived.

    Derived from BaseException, because logging catches an Exception raised while it writes a line. The signal would
    then have no effect.
    """


def serve(options: ServeOptions) -> int:
    """Start both services and wait until a signal arrives or one of them ends.

    Args:
        options: The models and the settings of the command line.

    Returns:
        0 after a signal, else the exit code of the service that ended, or 1 if that is 0. 128 + n if signal n killed it.

    Raises:
        Failure: This is Windows, the services are not installed, a model or a setting is invalid, or an address is in use.
    """
    if is_windows():
        raise Failure(WINDOWS_SENTENCE)
    started = time.monotonic()
    os.environ.update(settings_of(options))
    required = [name for name in _REQUIRED if name not in _MODEL_PACKAGES or not replays_only()]
    if missing := [name for name in required if importlib.util.find_spec(name) is None]:
        if "torch" in missing and (sentence := why_torch_is_missing()):
            raise Failure(sentence)
        names = ", ".join(missing)
        raise Failure(f"The services are not installed ({names} missing). {HOW_TO_INSTALL}")
    http_address()
    environment = _services_environment()
    if variable("TAILRACE_MODELS") and not replays_only():
        check_models()
    _check_addresses()
    reading, _ = os.pipe()  # the other end closes when this process ends
    stop = _Stop()
    _on_signals(stop)
    services: list[Service] = []
    try:
        for module, name in (("inference_server", "TAILRACE_GRPC_ADDRESS"), ("http_bridge", "TAILRACE_HTTP_ADDRESS")):
            services.append(Service(module, name, environment, reading))
            if not services[-1].address.endswith(":0"):
                continue
            # The bridge and this command call the address, so the service's own port must be in it.
            services[-1].wait_for_port()
            if not services[-1].is_listening():
                break
            environment[name] = services[-1].address
        return _watch(services, started, stop)
    except _Stopped:
        return 0
    finally:
        processes = [service.process for service in services]
        _on_signals(lambda number, frame: _terminate(processes))
        for process in reversed(processes):
            _terminate([process])
            process.wait()


def _services_environment() -> dict[str, str]:
    """Report unknown TAILRACE_* variables, and return the environment without them.

    The services would report the same variables again, once each.

    Raises:
        Failure: An unknown variable was probably meant to protect the services.
    """
    try:
        check_variables(logger)
    except ConfigurationError as error:
        raise Failure(f"{error}.") from None
    unknown = {each.name for each in unknown_variables(os.environ)}
    return {name: value for name, value in os.environ.items() if name not in unknown}


def _check_addresses() -> None:
    """Raise Failure if another program listens on an address of the services.

    The bridge would otherwise reach the server of another stack, and report that this stack is ready.
    """
    addresses = {"TAILRACE_GRPC_ADDRESS": DEFAULT_GRPC_ADDRESS, "TAILRACE_HTTP_ADDRESS": DEFAULT_HTTP_ADDRESS}
    for name, default in addresses.items():
        address = variable(name, default)
        try:
            listeners = listen(address)
        except PortInUse as error:
            (other,) = addresses.keys() - {name}
            sentences = error.explain(name.removeprefix(PREFIX), address)
            raise Failure(f"{sentences}. A second stack needs another {other} too.") from None
        except (OSError, ValueError):  # the service reports this error
            continue
        for listener in listeners:
            listener.close()


def _on_signals(handler: "signal._HANDLER") -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handler)
    # nohup starts the command with SIGHUP ignored, so the command must continue after its terminal is closed.
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, handler)


class _Stop:
    """Handler of the signals that end the command: it raises `_Stopped` and remembers the signal.

    Python discards an exception that a signal's handler raises during a finalizer, so that the loop checks the flag too.
    """

    def __init__(self) -> None:
        self.has_arrived = False

    def __call__(self, number: int, frame: object) -> None:
        """Handle a signal. See `signal.signal`."""
        self.has_arrived = True
        raise _Stopped


def _terminate(processes: list[Process]) -> None:
    for process in processes:
        if process.poll() is None:
            process.terminate()


def _watch(services: list[Service], started: float, stop: _Stop) -> int:
    """Wait until one service ends and return the exit code of `serve`. Print the curl command when both are ready.

    Args:
        services: The inference server and the bridge.
        started: Time of the start, in seconds of time.monotonic().
        stop: Handler of the signals.

    Raises:
        _Stopped: A signal has arrived.
    """
    is_announced = False
    while not stop.has_arrived:
        for service, name, other in zip(services, _NAMES, reversed(_NAMES), strict=False):
            code = service.process.poll()
            if code is not None and code < 0:
                logger.error("%s", _death(name, other, -code))
                return _SIGNAL_EXIT_CODE - code
            if code is not None:
                return code or 1
        # Only if both listen on their own ports: otherwise, the bridge may have reached the server of another stack.
        if not is_announced and all(service.is_listening() for service in services):
            os.environ.update({service.variable: service.address for service in services})
            if _is_ready(http_address()):
                is_announced = True
                announce(http_address(), time.monotonic() - started)
        time.sleep(_POLL_SECONDS if is_announced else _START_POLL_SECONDS)
    raise _Stopped


def _death(name: str, other: str, number: int) -> str:
    """Return the log line about a service that signal `number` killed. `other` is the service that is still running."""
    cause = "; the system may have run out of memory" if number == signal.SIGKILL else ""
    return f"The {name} was killed by signal {number}{cause}. Stopping the {other}."


def _is_ready(address: str) -> bool:
    try:
        with _OPENER.open(f"http://{address}/readyz", timeout=2.0) as response:
            return json.load(response) is not None
    except (OSError, ValueError, http.client.HTTPException):
        return False
