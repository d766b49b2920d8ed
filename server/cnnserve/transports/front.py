"""A server's parts on its ports: gRPC, HTTP and the health ports.

`app` imports it while the first models load, which need nothing of it.
"""

import asyncio
import contextlib
import importlib
import logging
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

from cnnserve.access.control import AccessControl
from cnnserve.access.tls import Tls
from cnnserve.api.page import PageService
from cnnserve.assembly.loading import Loading
from cnnserve.assembly.parts import Parts, assemble
from cnnserve.config.settings import COMPRESSION_LEVELS, ServerConfig
from cnnserve.process import listening, open_files
from cnnserve.registry import snapshot
from cnnserve.registry.health import Health
from cnnserve.transports import addresses
from cnnserve.transports.calls import PeerLimits
from cnnserve.transports.choice import GrpcTransport, grpc_transport
from cnnserve.transports.health_ports import health_ports
from cnnserve.transports.http.connections import ConnectionLimits
from cnnserve.transports.http.in_flight import InFlight, Limits
from cnnserve.transports.http.settings import HttpSettings

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ports:
    """The ports on which the server listens."""

    grpc: int
    http: int


@dataclass(frozen=True)
class Front:
    """Open ports. gRPC answers from the start, HTTP in `serve_http` until `http_end` is set."""

    parts: Parts
    ports: Ports
    grpc: GrpcTransport
    http_socket: socket.socket
    in_flight: InFlight
    config: ServerConfig
    access: AccessControl
    # How many files the process may have open.
    files: int
    http_end: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def health(self) -> Health:
        """What says whether the server is ready."""
        return self.parts.health

    async def serve_http(self) -> None:
        """Serves HTTP until `http_end` is set."""
        # Imported on a thread while models load: a start that waited for this import took 5 % longer.
        http = await asyncio.to_thread(importlib.import_module, "cnnserve.transports.http.server")
        parts, registry, access = self.parts, self.parts.registry, self.access
        application = http.application(
            parts.methods,
            Limits(parts.budget, parts.max_message_bytes),
            self.in_flight,
            lambda: snapshot.snapshot(registry, parts.budget, access.certificate_end),
            _http_settings(self.config),
            page=PageService(registry, parts.budget),
            guard=access.guard,
        )
        server = http.HttpServer(
            application, self.http_socket, parts.budget, _connection_limits(self.config, self.files), access.tls
        )
        serving, ending = asyncio.create_task(server.serve()), asyncio.create_task(self.http_end.wait())
        await asyncio.wait((serving, ending), return_when=asyncio.FIRST_COMPLETED)
        ending.cancel()
        server.stop()
        await serving

    @contextlib.asynccontextmanager
    async def probed(self) -> AsyncIterator[None]:
        """Answers on the health ports while inside, and tells `cnnserve health --here` which port to ask."""
        config = self.config
        main = addresses.url("https" if config.tls_certificate else "http", config.host, self.ports.http)
        async with health_ports(
            self.parts.methods, config.host, config.health_grpc_port, config.health_http_port
        ) as urls:
            with listening.announced([main, *urls][-1]):
                yield

    async def drain(self) -> None:
        """Reports NOT_SERVING first, so that clients know it; then ends the streams; then answers calls in flight."""
        self.health.drain()
        self.health.close()
        for service in self.parts.streaming:
            service.drain()
        grace_s = self.config.drain_grace_s
        await asyncio.gather(self.grpc.stop(grace_s), self.in_flight.drain(grace_s))


async def open_front(config: ServerConfig, loading: Loading, access: AccessControl, files: int) -> Front:
    """Opens the gRPC and the HTTP port. Raises `OSError` if one is in use, and `ConfigError`, see `assemble`.

    `files`: how many files the process may have open.
    """
    parts, in_flight = assemble(config, loading), InFlight()
    grpc = await grpc_transport(
        config.grpc_transport,
        parts.methods,
        parts.max_message_bytes,
        parts.budget,
        parts.pressure,
        peers=_peer_limits(config, files),
        guard=access.guard,
        reflection=not config.no_reflection,
        elsewhere=lambda: in_flight.count > 0,
    )
    grpc_port = _bind(grpc, config, access.tls)
    http_socket = addresses.listen(config.host, config.http_port, "http_port")
    await grpc.start()
    ports = Ports(grpc_port, http_socket.getsockname()[1])
    return Front(parts, ports, grpc, http_socket, in_flight, config, access, files)


def _peer_limits(config: ServerConfig, files: int) -> PeerLimits:
    return PeerLimits(
        config.grpc_min_ping_interval_s,
        config.max_metadata_kib * 2**10,
        compression_level=COMPRESSION_LEVELS.index(config.grpc_response_compression),
        max_connections=open_files.connections(files, config.max_connections),
        max_streams=config.max_streams_per_connection,
        max_age_s=config.max_connection_age_s,
        age_grace_s=config.max_connection_age_grace_s,
    )


def _connection_limits(config: ServerConfig, files: int) -> ConnectionLimits:
    most = open_files.connections(files, config.max_connections)
    return ConnectionLimits(most, config.max_connections_per_address, config.max_connection_age_s)


def _bind(grpc: GrpcTransport, config: ServerConfig, tls: Tls | None) -> int:
    addresses.check_free(config.host, config.grpc_port, "grpc_port")
    if config.grpc_socket:
        grpc.bind_unix(Path(config.grpc_socket).absolute())
        _log.info("gRPC also on the Unix socket %s", config.grpc_socket)
    return grpc.bind(config.host, config.grpc_port, tls)


def _http_settings(config: ServerConfig) -> HttpSettings:
    """A client that may change models must not be a page that happens to run in the browser of somebody near."""
    names = (config.host, *config.allowed_host)
    return HttpSettings(names if config.allow_model_control else None, config.cors_origin, not config.no_page)
