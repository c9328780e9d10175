"""Starts the bridge with `python -m http_bridge`: settings, sockets, application, server."""

import gc
import logging
import signal
import socket
import sys
from types import FrameType
from typing import Never

import uvicorn
from starlette.applications import Starlette

from http_bridge.app import create_app
from http_bridge.http_server.connection_limits import limited_protocol
from http_bridge.observability.metrics import Metrics
from http_bridge.observability.request_log import RequestLogMiddleware
from http_bridge.settings.bridge import Settings
from tailrace_shared import logs
from tailrace_shared.addresses import split_address
from tailrace_shared.config_errors import ConfigurationError
from tailrace_shared.listeners import PortInUse, listen
from tailrace_shared.parent import report_port, watch_parent
from tailrace_shared.variables import PREFIX, check_variables

logger = logging.getLogger("http_bridge")
# Allocations between two runs of the cyclic garbage collector (Python's default is 700). Reference counting
# frees the objects that are created for each token, so collections may be rare.
_GC_THRESHOLD = 50_000
# Open files besides the clients' connections: modules, listeners, gRPC, refused connections that are still being closed.
_OTHER_FILES = 256


def main() -> int:
    """Serve until SIGTERM or SIGINT. Returns the exit code: 0 after such a signal, 1 if the bridge could not start."""
    watch_parent()
    try:
        settings = Settings.from_environment()
        logs.configure("http_bridge", settings.log_level, settings.log_format)
        check_variables(logger)
        listeners = _listen("HTTP_ADDRESS", settings.http_address)
        bindings = _listen("BINDING_ADDRESS", settings.binding_address) if settings.binding_address else []
        metrics = Metrics()
        binding_port = bindings[0].getsockname()[1] if bindings else None
        app = create_app(settings, binding_port=binding_port, metrics=metrics)
        _serve(metrics, settings.http_metrics_address)
    except ConfigurationError as error:
        print(f"The bridge cannot start. {str(error).rstrip('.')}.", file=sys.stderr)
        return 1
    # uvicorn drains on these signals and then raises them again for the previous handler, which ends the process with 0.
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signal_number, _exit)
    gc.set_threshold(_GC_THRESHOLD)
    logger.info("listening on %s, calling %s", _urls(listeners), settings.grpc_address)
    if bindings:
        logger.info("the Worker binding listens on %s, without a token", _urls(bindings))
    report_port(listeners[0].getsockname()[1])
    _allow_files(settings.max_connections + _OTHER_FILES)
    server = _Server(uvicorn_config(app, settings, metrics))
    server.run(sockets=[*listeners, *bindings])
    return 0


def _listen(name: str, address: str) -> list[socket.socket]:
    try:
        return listen(address)
    except PortInUse as error:
        raise ConfigurationError(error.explain(name, address)) from None
    except OSError as error:
        raise _not_usable(name, address, error) from None


def _serve(metrics: Metrics, address: str) -> None:
    if address:
        try:
            metrics.serve(*split_address(address))
        except OSError as error:
            raise _not_usable("HTTP_METRICS_ADDRESS", address, error) from None


def _not_usable(name: str, address: str, error: OSError) -> ConfigurationError:
    # Python appends the address to the reason.
    reason = (error.strerror or str(error)).partition(" (while ")[0]
    return ConfigurationError(f"{PREFIX}{name}={address}: {reason}.")


class _Server(uvicorn.Server):
    """uvicorn's server, except that any second signal stops it immediately. uvicorn itself does that for SIGINT only."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.force_exit = self.force_exit or self.should_exit
        super().handle_exit(sig, frame)


def uvicorn_config(app: Starlette, settings: Settings, metrics: Metrics) -> uvicorn.Config:
    """Return uvicorn's configuration for the application.

    Args:
        app: The application.
        settings: Log level, limits and timeouts.
        metrics: Counts requests and connections.
    """
    is_verbose = settings.log_level == "debug"
    return uvicorn.Config(
        RequestLogMiddleware(app, metrics),
        http=limited_protocol(settings, metrics),
        ws="none",
        lifespan="on",
        log_config=None,
        log_level="debug" if is_verbose else "warning",
        access_log=is_verbose,
        server_header=False,
        # Browsers must not interpret JSON as a page, regardless of its text.
        headers=[("x-content-type-options", "nosniff")],
        # The bridge does not use the client's address, and a header must not change it in the log.
        proxy_headers=False,
        timeout_graceful_shutdown=settings.http_shutdown_grace_seconds,
    )


def _allow_files(wanted: int) -> None:
    """Raise the limit on open files to `wanted`, or to the system's hard limit if that is lower."""
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if allowed < wanted:
        logger.warning("the system allows %d open files, which is too few for %sMAX_CONNECTIONS", allowed, PREFIX)


def _urls(listeners: list[socket.socket]) -> str:
    addresses = [listener.getsockname()[:2] for listener in listeners]
    hosts = [f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in addresses]
    return " and ".join(f"http://{host}" for host in hosts)


def _exit(signal_number: int, frame: FrameType | None) -> Never:
    sys.exit(0)


if __name__ == "__main__":
    sys.exit(main())
