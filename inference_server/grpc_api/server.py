"""Life cycle of the gRPC server: listen, load, warm up, serve, drain, stop.

The port is open from the start. Until the models are loaded, calls of the inference service are rejected with
MODEL_NOT_READY. The health service reports SERVING after every engine has computed a first result.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from inference_server import garbage
from inference_server.engine.daemon_thread import in_daemon_thread
from inference_server.engine.watchdog import Watchdog
from inference_server.grpc_api.auth import TokenCheck
from inference_server.grpc_api.load_report import LoadReporter
from inference_server.grpc_api.malformed import Parsing
from inference_server.grpc_api.recordings.folder import RecordingsFolder
from inference_server.grpc_api.recordings.servicer import RecordingServicer
from inference_server.grpc_api.servicer import InferenceServicer
from inference_server.grpc_api.tls import server_credentials
from inference_server.observability.tracing.base import NullTracing
from inference_server.observability.tracing.exporter import tracing_from_environment
from inference_server.progress import progress
from inference_server.serving.model_names import configured_entries
from inference_server.settings.server import Settings
from tailrace.v1 import inference_pb2, inference_pb2_grpc
from tailrace_shared.addresses import is_loopback, split_address
from tailrace_shared.config_errors import ConfigurationError
from tailrace_shared.listeners import PortInUse, listen, local_hosts

if TYPE_CHECKING:
    from inference_server.engine.running import RunningEngine

logger = logging.getLogger(__name__)

SERVICE = inference_pb2.DESCRIPTOR.services_by_name["InferenceService"].full_name
_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
# Seconds until open streams are closed after the last reply. Health watches never end by themselves.
_LAST_STREAMS_SECONDS = 0.5

# With SO_REUSEPORT, two servers could share a port, and each would get some of the requests.
_OPTIONS = (("grpc.so_reuseport", 0),)


def import_startup() -> ModuleType:
    """Import and return the module that loads the models.

    The module imports torch and transformers, which takes seconds. It is therefore imported only after the settings
    were checked and the port was opened.
    """
    with progress("importing torch and transformers", is_brief=True):
        from inference_server.serving import startup
        from inference_server.weights import loader

        loader.silence_libraries()
        loader.read_models_folder_once()
    garbage.resume()
    return startup


class Server:
    """A gRPC server for the models of one catalog, or for recordings of their replies.

    Attributes:
        servicer: The inference service.
        broken: Set when an engine has failed and cannot continue; the process must then end.
    """

    def __init__(self, settings: Settings) -> None:
        """Set up the server; `listen` opens its port.

        Raises:
            ConfigurationError: The OTEL_* variables, the tokens file or the folder of recordings cannot be used.
        """
        self._settings = settings
        self._tracing = tracing_from_environment()
        self.servicer = _servicer(settings, self._tracing)
        self.servicer.metrics.watch(self._named_engines)
        self._stop_metrics: Callable[[], None] = lambda: None
        self._watchdog = Watchdog(
            self._engines,
            stall_seconds=settings.stall_seconds,
            exit_seconds=settings.stall_exit_seconds,
            on_health=self._report_health,
            on_exit=self._abandon_stalled,
        )
        self._watching: asyncio.Task[None] | None = None
        self.broken = asyncio.Event()
        self._health = health.aio.HealthServicer()
        self._load_reporter = LoadReporter(self._utilization)
        self.servicer.metrics.watch_utilization(self._load_reporter.level)
        tokens_file = settings.grpc_tokens_file
        self._server = grpc.aio.server(
            interceptors=[*([] if tokens_file is None else [TokenCheck(tokens_file)]), Parsing()],
            options=(
                *_OPTIONS,
                ("grpc.max_receive_message_length", settings.max_message_bytes),
                ("grpc.max_metadata_size", 16 * 1024),
                # Clients may ping while a long prompt is computed and nothing is sent. The shortest interval of Go's
                # client is 10 s, and a ping may arrive early.
                ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
                ("grpc.keepalive_permit_without_calls", 1),
                # Clients discover new servers when they reconnect. Replies on the old connection are finished,
                # regardless of their duration.
                ("grpc.max_connection_age_ms", int(settings.grpc_connection_age_seconds * 1000)),
            ),
        )
        self._health_server: grpc.aio.Server | None = None

    async def listen(self) -> int:
        """Open the gRPC port, and those of metrics and probes if they are set. Return the number of the gRPC port.

        Raises:
            ConfigurationError: A port cannot be opened, or a TLS file cannot be used.
        """
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(self.servicer, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self._load_reporter.add_to(self._server)
        names = (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)
        await self._set_health(_NOT_SERVING)
        self._serve_metrics()
        if self._settings.grpc_health_address is not None:
            await self._listen_for_probes(self._settings.grpc_health_address)
        credentials = server_credentials(self._settings)
        port = _bind(self._server, self._settings.grpc_address, "GRPC_ADDRESS", credentials)
        await self._server.start()
        host, _ = split_address(self._settings.grpc_address)
        shown = self._settings.grpc_address.rpartition(":")[0]
        logger.info("listening on %s:%d%s", shown, port, "" if credentials is None else " with TLS")
        self._warn_if_open(host)
        self._tracing.start()
        return port

    async def _listen_for_probes(self, address: str) -> None:
        self._health_server = grpc.aio.server(options=_OPTIONS)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._health_server)
        _bind(self._health_server, address, "GRPC_HEALTH_ADDRESS", None)
        await self._health_server.start()

    def _warn_if_open(self, host: str) -> None:
        settings = self._settings
        if settings.grpc_tokens_file is None and settings.grpc_tls_client_ca is None and not is_loopback(host):
            logger.warning(
                "%s can be reached from other machines and accepts every client: "
                "set TAILRACE_GRPC_TOKENS_FILE or TAILRACE_GRPC_TLS_CLIENT_CA, or listen on 127.0.0.1",
                settings.grpc_address,
            )

    async def load(self) -> None:
        """Load and warm up the catalog's models, unless recordings are only replayed. Then report SERVING.

        Raises:
            ConfigurationError: The catalog cannot be read, or one of its models cannot be served.
        """
        if self._settings.replays_only:
            await self._replay()
            return
        started = time.monotonic()
        entries = configured_entries(self._settings)
        # In a daemon thread: a signal ends the process without waiting for the imports.
        startup = await in_daemon_thread(import_startup)
        self.servicer.host(await startup.load_all(entries, self._settings, self._break))
        self.servicer.metrics.expect(self.servicer.models)
        await self._set_health(_SERVING)
        self._watching = asyncio.create_task(self._watchdog.watch())
        logger.info("ready after %.1f s: %s", time.monotonic() - started, ", ".join(self.servicer.models))

    async def _replay(self) -> None:
        garbage.resume()
        models = [model.name for model in self.servicer.descriptions()]
        self.servicer.metrics.expect(models)
        await self._set_health(_SERVING)
        logger.info("ready without a model: only recorded replies are sent, of %s", ", ".join(models))

    async def drain(self, grace_seconds: float) -> None:
        """Reject new requests and wait until the accepted ones are finished, at most `grace_seconds` seconds."""
        self.servicer.is_stopping = True
        await self._set_health(_NOT_SERVING)
        running = sum(engine.num_in_flight for engine in self._engines())
        logger.info("stopping: %d replies to finish within %.0f s", running, grace_seconds)
        try:
            async with asyncio.timeout(grace_seconds):
                await asyncio.gather(*(engine.drain() for engine in self._engines()))
        except TimeoutError:
            logger.warning("stopping: some replies are aborted after %.0f s", grace_seconds)

    async def stop(self) -> None:
        """Stop the engines without waiting for their replies, and close the ports."""
        if self._watching is not None:
            self._watching.cancel()
        self._stop_metrics()
        self._load_reporter.stop()
        await asyncio.gather(*(engine.stop() for engine in self._engines()))
        servers = [server for server in (self._server, self._health_server) if server is not None]
        await asyncio.gather(*(server.stop(_LAST_STREAMS_SECONDS) for server in servers))
        await self._tracing.close()

    def _engines(self) -> "set[RunningEngine]":
        return {model.engine for model in self.servicer.models.values()}

    def _utilization(self) -> float:
        """Return the utilization of the busiest engine: all engines share the machine."""
        return max((engine.utilization for engine in self._engines()), default=0.0)

    def _named_engines(self) -> "list[tuple[str, RunningEngine]]":
        """Return each engine once, with the name of the first model that it serves."""
        return list(
            {model.engine: (name, model.engine) for name, model in reversed(self.servicer.models.items())}.values()
        )

    def _serve_metrics(self) -> None:
        address = self._settings.metrics_address
        if address is None:
            return
        try:
            self._stop_metrics = self.servicer.metrics.serve(*split_address(address))
        except OSError as error:
            raise ConfigurationError(
                f"cannot listen on {address} ({error.strerror}); set TAILRACE_METRICS_ADDRESS"
            ) from None

    async def _report_health(self, is_moving: bool) -> None:
        if not self.servicer.is_stopping:
            await self._set_health(_SERVING if is_moving else _NOT_SERVING)

    def _abandon_stalled(self) -> None:
        for engine in self._engines():
            if engine.is_stalled:
                engine.abandon()

    async def _set_health(self, status: int) -> None:
        for name in ("", SERVICE):
            await self._health.set(name, status)

    def _break(self) -> None:
        """Reject new requests and set `broken`: the process ends with an error, so that its supervisor restarts it."""
        self.servicer.is_stopping = True
        self.broken.set()


def _servicer(settings: Settings, tracing: NullTracing) -> InferenceServicer:
    """Return the service, with recordings if their folder is set. Raises ConfigurationError for an unusable folder."""
    if settings.recordings is None:
        return InferenceServicer(settings, tracing)
    folder, mode = RecordingsFolder(settings.recordings, settings.recordings_mode), settings.recordings_mode
    logger.info("recordings: %s, %d in %s", mode, len(folder), folder.path)
    return RecordingServicer(settings, tracing, folder)


def _bind(server: grpc.aio.Server, address: str, name: str, credentials: grpc.ServerCredentials | None) -> int:
    """Listen on `address`, and return the port. The host localhost means 127.0.0.1 and, with IPv6, ::1."""
    host, port = split_address(address)
    for each in local_hosts(host):
        target = f"[{each}]:{port}" if ":" in each else f"{each}:{port}"
        try:
            port = server.add_secure_port(target, credentials) if credentials else server.add_insecure_port(target)
        except RuntimeError:
            port = 0
        if port == 0:
            raise ConfigurationError(_not_usable(address, name))
    return port


def _not_usable(address: str, name: str) -> str:
    try:
        for listener in listen(address):
            listener.close()
    except PortInUse as error:
        return error.explain(name, address)
    except OSError:
        pass
    return f"cannot listen on {address}: the address is in use or not one of this machine; set TAILRACE_{name}"
