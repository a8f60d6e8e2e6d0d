"""The API listener: service, health and reflection on one `grpc.aio` server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import grpc
import structlog
from grpc_health.v1 import health, health_pb2_grpc

from samserve.errors import Misconfigured, Unavailable
from samserve.rpc.health import Health
from samserve.rpc.methods import SERVICE
from samserve.rpc.public_services import PublicServiceLimits
from samserve.rpc.reflection import add_reflection
from samserve.rpc.tls import Certificate, server_credentials
from samserve.settings import LimitSettings, ServerSettings
from samserve.system import addresses
from samserve.system.limits import file_limit

LIVE = "live"
LEAST_CONNECTIONS = 64
"""A server that may not have so many, or as many as its settings want, does not start."""
_OTHER_FILES = 256
_LOOK_S = 0.05
# Times our limit that gRPC lets in, so that what is over ours gets an answer with a reason.
_METADATA_HEADROOM = 2
_READY_NAMES = ("", SERVICE)


class ApiServer:
    """A bound listener; `serving` runs it."""

    def __init__(
        self,
        handlers: grpc.GenericRpcHandler,
        settings: ServerSettings,
        limits: LimitSettings,
        certificate: Certificate | None = None,
        *,
        busy: Callable[[], bool] = lambda: False,
    ) -> None:
        """Listen; with *certificate* over TLS only.  *busy* tells whether calls are in flight."""
        self._settings = settings
        self._busy = busy
        self._health = Health()
        self._server = grpc.aio.server(
            options=_options(settings, limits),
            interceptors=[PublicServiceLimits(settings.metadata_bytes)],
        )
        self._server.add_generic_rpc_handlers((handlers,))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        if settings.reflection:
            add_reflection((SERVICE, health.SERVICE_NAME), self._server)
        self.port = _bind(self._server, settings, certificate)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Answer calls while the block runs; health says NOT_SERVING until `set_ready`."""
        self.set_ready(ready=False)
        self._health.set(LIVE, serving=True)
        await self._server.start()
        try:
            yield
        finally:
            self._health.close()
            await self._stop()

    async def _stop(self) -> None:
        """Take no new calls, and end as soon as those in flight have ended, within the grace.

        gRPC's own way of stopping waits for every connection, also for those that say nothing.
        """
        stopping = asyncio.create_task(self._server.stop(self._settings.grace_s))
        while not stopping.done() and self._busy():
            await asyncio.wait({stopping}, timeout=_LOOK_S)
        # Time for answers that have just been given to leave.
        await asyncio.wait({stopping}, timeout=_LOOK_S)
        await self._server.stop(None)
        await stopping

    def set_ready(self, *, ready: bool) -> None:
        """Say whether this server wants calls."""
        for name in _READY_NAMES:
            self._health.set(name, serving=ready)


def _options(settings: ServerSettings, limits: LimitSettings) -> list[tuple[str, int]]:
    options = [
        ("grpc.max_receive_message_length", limits.request_bytes),
        ("grpc.max_send_message_length", limits.response_bytes),
        # Between the two, gRPC would refuse at random.
        ("grpc.max_metadata_size", _METADATA_HEADROOM * settings.metadata_bytes),
        ("grpc.absolute_max_metadata_size", _METADATA_HEADROOM * settings.metadata_bytes),
        # Two servers on one port would share its connections without anybody noticing.
        ("grpc.so_reuseport", 0),
        # Clients may ping, with or without calls, so often without being sent away.
        ("grpc.http2.min_ping_interval_without_data_ms", _ms(settings.ping_interval_s)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.max_concurrent_streams", settings.streams),
        ("grpc.max_allowed_incoming_connections", _connections(settings)),
        ("grpc.server_handshake_timeout_ms", _ms(settings.handshake_s)),
        # Until a client has acknowledged them, gRPC holds it to none of its limits.
        ("grpc.http2.settings_timeout", _ms(settings.handshake_s)),
        ("grpc.max_connection_idle_ms", _ms(settings.idle_s)),
        ("grpc.max_connection_age_grace_ms", _ms(settings.grace_s)),
        # A peer that has vanished is noticed, and what it had asked for ends.
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
    ]
    if settings.connection_age_s:
        options.append(("grpc.max_connection_age_ms", _ms(settings.connection_age_s)))
    return options


def check_files(settings: ServerSettings) -> None:
    """Say if the system allows fewer connections than the settings do.

    Raises `Misconfigured` if it allows next to none.
    """
    files, least = file_limit(), min(settings.connections, LEAST_CONNECTIONS)
    if files < _OTHER_FILES + least:
        raise Misconfigured(
            f"this process may open {files} files, and needs {_OTHER_FILES + least} for {least} "
            "connections: raise the limit (ulimit -n, LimitNOFILE)"
        )
    if _connections(settings) < settings.connections:
        structlog.get_logger("samserve").warning(
            "fewer connections than server.connections",
            connections=_connections(settings),
            wanted=settings.connections,
            open_files=files,
            open_files_needed=settings.connections + _OTHER_FILES,
        )


def _connections(settings: ServerSettings) -> int:
    """Leave files for everything else: without any, a revoked key could not be read."""
    return max(1, min(settings.connections, file_limit() - _OTHER_FILES))


def _ms(seconds: float) -> int:
    return max(1, round(seconds * 1000))


def _bind(
    server: grpc.aio.Server, settings: ServerSettings, certificate: Certificate | None
) -> int:
    address = addresses.join(settings.host, settings.port)
    try:
        # gRPC does not say why it cannot, but writes a line of its own to standard error.
        for opened in addresses.listen(settings.host, settings.port):
            opened.close()
        if certificate is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, server_credentials(certificate))
    except OSError as error:
        raise Unavailable(f"cannot listen on {address}: {addresses.why(error)}") from error
    except RuntimeError as error:
        raise Unavailable(f"cannot listen on {address}: gRPC is refused it") from error
