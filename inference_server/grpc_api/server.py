"""The gRPC server's life: listen, load, warm up, serve, drain, stop.

It listens from the first second, so that whoever asks is told that the models are being loaded; the health service says
SERVING only after every engine has generated something.
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

from inference_server.engine.watchdog import Watchdog
from inference_server.grpc_api.auth import TokenCheck
from inference_server.grpc_api.load_report import LoadReporter
from inference_server.grpc_api.malformed import Parsing
from inference_server.grpc_api.servicer import InferenceServicer
from inference_server.grpc_api.tls import server_credentials
from inference_server.observability.tracing.exporter import tracing_from_environment
from inference_server.serving.catalog import read_catalog
from inference_server.settings import Settings
from tailrace.v1 import inference_pb2, inference_pb2_grpc
from tailrace_shared.addresses import is_loopback
from tailrace_shared.config_errors import ConfigurationError

if TYPE_CHECKING:
    from inference_server.engine.base import BaseEngine

logger = logging.getLogger(__name__)

SERVICE = inference_pb2.DESCRIPTOR.services_by_name["InferenceService"].full_name
_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
# Streams that never end by themselves (a health watch) get this long when all replies are done.
_LAST_STREAMS_SECONDS = 0.5

# Otherwise two servers could share a port, and each would get some of the requests.
_OPTIONS = (("grpc.so_reuseport", 0),)


def import_hosting() -> ModuleType:
    """torch and transformers take seconds to import: neither a wrong setting nor a signal nor a call shall wait for them."""
    from inference_server.serving import hosted_model as hosting
    from inference_server.weights import loader

    loader.silence_libraries()
    return hosting


class Server:
    """One gRPC server with the models of one catalog. Raises ConfigurationError if traces cannot be sent as asked for."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._tracing = tracing_from_environment()
        self.servicer = InferenceServicer(settings, self._tracing)
        self.servicer.metrics.watch(self._named_engines)
        self._stop_metrics: Callable[[], None] = lambda: None
        self._watchdog = Watchdog(
            self._engines,
            stall_seconds=settings.stall_seconds,
            exit_seconds=settings.stall_exit_seconds,
            tell=self._tell_progress,
            give_up=self._give_up,
        )
        self._watching: asyncio.Task[None] | None = None
        self.broken = asyncio.Event()  # a model failed for good
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
                # Clients may ping while a long prompt is computed and nothing is sent.
                ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
                ("grpc.keepalive_permit_without_calls", 1),
                # Clients that were told of no new servers look for them when they connect anew. Replies that run on the
                # old connection come to their end on it, however long they take.
                ("grpc.max_connection_age_ms", int(settings.grpc_connection_age_seconds * 1000)),
            ),
        )
        self._health_server: grpc.aio.Server | None = None

    async def listen(self) -> int:
        """Open the port and return its number. Raises ConfigurationError if it is taken, or a file of TLS is not usable."""
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
        host = self._settings.grpc_address.rpartition(":")[0]
        logger.info("listening on %s:%d%s", host, port, "" if credentials is None else " with TLS")
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
                "%s can be reached from other machines, and whoever reaches it is let in: "
                "set TAILRACE_GRPC_TOKENS_FILE or TAILRACE_GRPC_TLS_CLIENT_CA, or listen on 127.0.0.1",
                settings.grpc_address,
            )

    async def load(self) -> None:
        """Load and warm up the catalog's models, then say SERVING. Raises ConfigurationError."""
        started = time.monotonic()
        entries = read_catalog(self._settings.catalog)
        hosting = await asyncio.to_thread(import_hosting)
        self.servicer.models = await hosting.load_all(entries, self._settings, self._break)
        self.servicer.metrics.expect(self.servicer.models)
        await self._set_health(_SERVING)
        self._watching = asyncio.create_task(self._watchdog.watch())
        logger.info("ready after %.1f s: %s", time.monotonic() - started, ", ".join(self.servicer.models))

    async def drain(self, grace_seconds: float) -> None:
        """Refuse new requests and wait until the accepted ones are done, at most `grace_seconds`."""
        self.servicer.is_stopping = True
        await self._set_health(_NOT_SERVING)
        running = sum(engine.num_in_flight for engine in self._engines())
        logger.info("stopping: %d replies to finish, within %.0f s", running, grace_seconds)
        try:
            async with asyncio.timeout(grace_seconds):
                await asyncio.gather(*(engine.drain() for engine in self._engines()))
        except TimeoutError:
            logger.warning("stopping: some replies are cut, %.0f s are over", grace_seconds)

    async def stop(self) -> None:
        """End the model threads, whatever they do, and close the port."""
        if self._watching is not None:
            self._watching.cancel()
        self._stop_metrics()
        self._load_reporter.stop()
        await asyncio.gather(*(engine.stop() for engine in self._engines()))
        servers = [server for server in (self._server, self._health_server) if server is not None]
        await asyncio.gather(*(server.stop(_LAST_STREAMS_SECONDS) for server in servers))
        await self._tracing.close()

    def _engines(self) -> "set[BaseEngine]":
        return {model.engine for model in self.servicer.models.values()}

    def _utilization(self) -> float:
        """Of the engine that is busiest: all of them share the machine."""
        return max((engine.utilization for engine in self._engines()), default=0.0)

    def _named_engines(self) -> "list[tuple[str, BaseEngine]]":
        """Each engine once, under the name of the first model that it hosts."""
        return list(
            {model.engine: (name, model.engine) for name, model in reversed(self.servicer.models.items())}.values()
        )

    def _serve_metrics(self) -> None:
        address = self._settings.metrics_address
        if address is None:
            return
        host, _, port = address.rpartition(":")
        try:
            self._stop_metrics = self.servicer.metrics.serve(host.strip("[]"), int(port))
        except OSError as error:
            raise ConfigurationError(
                f"cannot listen on {address} ({error.strerror}); set TAILRACE_METRICS_ADDRESS"
            ) from None

    async def _tell_progress(self, is_moving: bool) -> None:
        if not self.servicer.is_stopping:
            await self._set_health(_SERVING if is_moving else _NOT_SERVING)

    def _give_up(self) -> None:
        for engine in self._engines():
            if engine.is_stalled:
                engine.give_up()

    async def _set_health(self, status: int) -> None:
        for name in ("", SERVICE):
            await self._health.set(name, status)

    def _break(self) -> None:
        """A model failed for good: say so, and let the process end with an error, so that it is started anew."""
        self.servicer.is_stopping = True
        self.broken.set()


def _bind(server: grpc.aio.Server, address: str, name: str, credentials: grpc.ServerCredentials | None) -> int:
    try:
        port = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
    except RuntimeError:
        port = 0
    if port == 0:
        raise ConfigurationError(
            f"cannot listen on {address}: the address is in use or not of this machine; set TAILRACE_{name}"
        )
    return port
