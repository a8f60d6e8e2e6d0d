"""The API listener: service, health and reflection on one `grpc.aio` server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import grpc
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from samserve.errors import Unavailable
from samserve.machine import file_limit
from samserve.rpc.bystanders import Bystanders
from samserve.rpc.health import Health
from samserve.rpc.methods import SERVICE
from samserve.rpc.tls import Certificate, server_credentials
from samserve.settings import LimitSettings, ServerSettings

LIVE = "live"
_OTHER_FILES = 256
_LOOK_S = 0.05
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
            options=_options(settings, limits), interceptors=[Bystanders()]
        )
        self._server.add_generic_rpc_handlers((handlers,))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        if settings.reflection:
            names = (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, self._server)
        self.port = _bind(self._server, f"{settings.host}:{settings.port}", certificate)

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
        # Two servers on one port would share its connections without anybody noticing.
        ("grpc.so_reuseport", 0),
        # Clients may ping, with or without calls, so often without being sent away.
        ("grpc.http2.min_ping_interval_without_data_ms", _ms(settings.ping_interval_s)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.max_concurrent_streams", settings.streams),
        ("grpc.max_allowed_incoming_connections", _connections(settings)),
        ("grpc.server_handshake_timeout_ms", _ms(settings.handshake_s)),
        ("grpc.max_connection_idle_ms", _ms(settings.idle_s)),
        ("grpc.max_connection_age_grace_ms", _ms(settings.grace_s)),
        # A peer that has vanished is noticed, and what it had asked for ends.
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
    ]
    if settings.connection_age_s:
        options.append(("grpc.max_connection_age_ms", _ms(settings.connection_age_s)))
    return options


def _connections(settings: ServerSettings) -> int:
    """Leave files for everything else: without any, a revoked key could not be read."""
    return max(1, min(settings.connections, file_limit() - _OTHER_FILES))


def _ms(seconds: float) -> int:
    return max(1, round(seconds * 1000))


def _bind(server: grpc.aio.Server, address: str, certificate: Certificate | None) -> int:
    try:
        if certificate is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, server_credentials(certificate))
    except RuntimeError as error:
        raise Unavailable(f"cannot listen on {address}: is something else using it?") from error
