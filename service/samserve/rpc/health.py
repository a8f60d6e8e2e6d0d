"""The standard health service (grpc.health.v1), which needs no credentials.

The servicer of `grpcio-health-checking` drops all watchers of a name when one of them disconnects,
so one client could keep changes from the others.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

Response = health_pb2.HealthCheckResponse


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # the package is untyped
    """Reports the status of each name, and its changes to clients that watch."""

    def __init__(self) -> None:
        self._statuses: dict[str, int] = {}
        self._changed = asyncio.Event()
        self._closed = False

    def close(self) -> None:
        """Report the current status to all clients that watch, and end their streams."""
        self._closed = True
        self._changed.set()

    def set(self, name: str, *, serving: bool) -> None:
        """Set the status of a name."""
        self._statuses[name] = Response.SERVING if serving else Response.NOT_SERVING
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def Check(self, request: Any, rpc: Any) -> Any:
        """Return the status of a name; NOT_FOUND for an unknown name."""
        status = self._statuses.get(request.service)
        if status is None:
            await rpc.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
        return Response(status=status)

    async def Watch(self, request: Any, rpc: Any) -> AsyncIterator[Any]:
        """Yield the status of a name now and at every change, until the server stops."""
        sent = None
        while True:
            # Before the status is read, so that a later change is not missed.
            changed = self._changed
            status = self._statuses.get(request.service, Response.SERVICE_UNKNOWN)
            if status != sent:
                sent = status
                yield Response(status=status)
            if self._closed:
                return
            await changed.wait()
