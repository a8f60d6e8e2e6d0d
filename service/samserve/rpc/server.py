"""The API listener: service, health and reflection on one `grpc.aio` server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as aio_health
from grpc_reflection.v1alpha import reflection

from samserve.errors import Unavailable
from samserve.rpc.boundary import SERVICE
from samserve.rpc.servicer import SegmentationServicer
from samserve.settings import LimitSettings, ServerSettings
from samserve.v1 import samserve_pb2_grpc

LIVE = "live"
_READY_NAMES = ("", SERVICE)


class ApiServer:
    """A bound listener; `serving` runs it."""

    def __init__(
        self, servicer: SegmentationServicer, settings: ServerSettings, limits: LimitSettings
    ) -> None:
        self._settings = settings
        self._health = aio_health.HealthServicer()
        self._server = grpc.aio.server(options=_options(limits))
        samserve_pb2_grpc.add_SegmentationServiceServicer_to_server(servicer, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        if settings.reflection:
            names = (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, self._server)
        self.port = _bind(self._server, f"{settings.host}:{settings.port}")

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Answer calls while the block runs; health says NOT_SERVING until `set_ready`."""
        # The stock servicer would begin with SERVING under the empty name.
        await self.set_ready(ready=False)
        await self._health.set(LIVE, health_pb2.HealthCheckResponse.SERVING)
        await self._server.start()
        try:
            yield
        finally:
            await self._server.stop(self._settings.grace_s)

    async def set_ready(self, *, ready: bool) -> None:
        """Say whether this server wants calls."""
        status = (
            health_pb2.HealthCheckResponse.SERVING
            if ready
            else health_pb2.HealthCheckResponse.NOT_SERVING
        )
        for name in _READY_NAMES:
            await self._health.set(name, status)


def _options(limits: LimitSettings) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", limits.request_bytes),
        ("grpc.max_send_message_length", limits.response_bytes),
        # Two servers on one port would share its connections without anybody noticing.
        ("grpc.so_reuseport", 0),
        # Clients may ping every 10 s, with or without calls, without being sent away.
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
    ]


def _bind(server: grpc.aio.Server, address: str) -> int:
    try:
        return server.add_insecure_port(address)
    except RuntimeError as error:
        raise Unavailable(f"cannot listen on {address}: is something else using it?") from error
