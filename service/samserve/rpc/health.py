"""The standard health service (grpc.health.v1), which needs no credentials.

The servicer of `grpcio-health-checking` forgets its watchers of a name when one of them leaves, so
one client could keep changes from the others.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

Answer = health_pb2.HealthCheckResponse


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # it has no types
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
        self._statuses[name] = Answer.SERVING if serving else Answer.NOT_SERVING
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def Check(self, request: Any, rpc: Any) -> Any:
        """Answer the status of a name; NOT_FOUND if there is no such name."""
        status = self._statuses.get(request.service)
        if status is None:
            await rpc.abort(grpc.StatusCode.NOT_FOUND, "there is no service of this name")
        return Answer(status=status)

    async def Watch(self, request: Any, rpc: Any) -> AsyncIterator[Any]:
        """Answer the status of a name now and whenever it changes, until the server stops."""
        told = None
        while True:
            # Before the status is read, so that a change after that is noticed.
            changed = self._changed
            status = self._statuses.get(request.service, Answer.SERVICE_UNKNOWN)
            if status != told:
                told = status
                yield Answer(status=status)
            if self._closed:
                return
            await changed.wait()
