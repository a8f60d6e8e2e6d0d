"""The API listener: API, health and reflection on one `grpc.aio` server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import grpc
from grpc_health.v1 import health, health_pb2_grpc

from samserve.errors import Unavailable
from samserve.rpc.health import Health
from samserve.rpc.methods import SERVICE
from samserve.rpc.public_services import PublicServiceLimits
from samserve.rpc.reflection import add_reflection
from samserve.rpc.tls import Certificate, server_credentials
from samserve.settings import LimitSettings, ServerSettings
from samserve.system import addresses

LIVE = "live"
_POLL_INTERVAL_S = 0.05
# gRPC accepts this multiple of the limit, so that an excess gets an error with a reason.
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
        """Listen; with *certificate* over TLS only.  *busy* returns whether calls are in flight."""
        self._settings = settings
        self._busy = busy
        self._health = Health()
        self._server = grpc.aio.server(options=_options(settings, limits))
        self._server.add_generic_rpc_handlers((handlers,))
        public = PublicServiceLimits(self._server, settings.max_metadata_bytes)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, public)
        if settings.reflection:
            add_reflection((SERVICE, health.SERVICE_NAME), public)
        self.port = _bind(self._server, settings, certificate)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Serve calls while the block runs; health reports NOT_SERVING until `set_ready`."""
        self.set_ready(ready=False)
        self._health.set(LIVE, serving=True)
        await self._server.start()
        try:
            yield
        finally:
            self._health.close()
            await self._stop()

    async def _stop(self) -> None:
        """Reject new calls, and end once the calls in flight have ended or the grace has passed.

        `grpc.aio.Server.stop` alone would wait for every connection, idle ones included.
        """
        stopping = asyncio.create_task(self._server.stop(self._settings.grace_period_s))
        while not stopping.done() and self._busy():
            await asyncio.wait({stopping}, timeout=_POLL_INTERVAL_S)
        # Time to send the last responses.
        await asyncio.wait({stopping}, timeout=_POLL_INTERVAL_S)
        await self._server.stop(None)
        await stopping

    def set_ready(self, *, ready: bool) -> None:
        """Set the health status of the server."""
        for name in _READY_NAMES:
            self._health.set(name, serving=ready)


def _options(settings: ServerSettings, limits: LimitSettings) -> list[tuple[str, int]]:
    options = [
        ("grpc.max_receive_message_length", limits.max_request_bytes),
        ("grpc.max_send_message_length", limits.max_response_bytes),
        # Between different values for the two, gRPC would reject at random.
        ("grpc.max_metadata_size", _METADATA_HEADROOM * settings.max_metadata_bytes),
        ("grpc.absolute_max_metadata_size", _METADATA_HEADROOM * settings.max_metadata_bytes),
        # Two servers on one port would share its connections silently.
        ("grpc.so_reuseport", 0),
        # More frequent pings, with or without calls, close the connection.
        ("grpc.http2.min_ping_interval_without_data_ms", _ms(settings.min_ping_interval_s)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.max_concurrent_streams", settings.max_concurrent_streams),
        ("grpc.max_allowed_incoming_connections", settings.max_connections),
        ("grpc.server_handshake_timeout_ms", _ms(settings.handshake_timeout_s)),
        # gRPC does not enforce its limits until a client has acknowledged them.
        ("grpc.http2.settings_timeout", _ms(settings.handshake_timeout_s)),
        ("grpc.max_connection_idle_ms", _ms(settings.idle_timeout_s)),
        ("grpc.max_connection_age_grace_ms", _ms(settings.grace_period_s)),
        # A lost peer is detected, and its calls end.
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
    ]
    if settings.max_connection_age_s:
        options.append(("grpc.max_connection_age_ms", _ms(settings.max_connection_age_s)))
    return options


def _ms(seconds: float) -> int:
    return max(1, round(seconds * 1000))


def _bind(
    server: grpc.aio.Server, settings: ServerSettings, certificate: Certificate | None
) -> int:
    address = addresses.join(settings.host, settings.port)
    try:
        # Tried first: gRPC does not report the reason of a failure, and logs a line of its own.
        for opened in addresses.listen(settings.host, settings.port):
            opened.close()
        if certificate is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, server_credentials(certificate))
    except OSError as error:
        raise Unavailable(f"cannot listen on {address}: {addresses.error_reason(error)}") from error
    except RuntimeError as error:
        raise Unavailable(f"cannot listen on {address}: gRPC could not bind it") from error
