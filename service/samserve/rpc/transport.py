"""The transport of the call pipeline for gRPC."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc

from samserve.calls.metadata import REQUEST_ID, Metadata
from samserve.calls.status import Failure
from samserve.errors import InvalidRequest
from samserve.rpc.status import status_of
from samserve.security.certificates import peer_names

Rpc = grpc.aio.ServicerContext[Any, Any]

_DETAILS = "grpc-status-details-bin"
# gRPC core reports a missing deadline as one in the very far future.
_NO_DEADLINE_S = 10 * 365 * 24 * 3600.0
# Timeout for sending an error: a client that does not read would block it for ever.
_ABORT_TIMEOUT_S = 5.0


class GrpcTransport:
    """See `calls.pipeline.Transport`."""

    protocol = "grpc"

    def __init__(self, rpc: Rpc) -> None:
        self._rpc = rpc
        self._trailing: Metadata = ()
        # Read once: gRPC builds a new copy each time.
        self.metadata: Metadata = tuple(rpc.invocation_metadata() or ())

    @property
    def remaining_s(self) -> float | None:
        """See `Transport.remaining_s`."""
        remaining = self._rpc.time_remaining()
        return None if remaining is None or remaining > _NO_DEADLINE_S else remaining

    def certificate_names(self) -> tuple[str, ...]:
        """See `Transport.certificate_names`."""
        return peer_names(self._rpc.auth_context())

    def set_request_id(self, request_id: str) -> None:
        """See `Transport.set_request_id`."""
        self._trailing = ((REQUEST_ID, request_id),)
        self._rpc.set_trailing_metadata(self._trailing)

    async def read(self) -> bytes:
        """See `Transport.read`."""
        data = await self._rpc.read()
        if isinstance(data, bytes):
            return data
        await self._check_cancelled()
        raise InvalidRequest("request", "is missing")

    async def read_next(self) -> bytes | None:
        """See `Transport.read_next`."""
        data = await self._rpc.read()
        if isinstance(data, bytes):
            return data
        await self._check_cancelled()
        return None

    async def _check_cancelled(self) -> None:
        """Distinguish a cancelled call, or a rejected message, from the end of the requests.

        Raises ``CancelledError`` for the former: gRPC cancels this task, shortly after the read
        has ended.
        """
        for _ in range(10):
            await asyncio.sleep(0.001)
            if self._rpc.cancelled():
                raise asyncio.CancelledError

    async def write(self, data: bytes) -> None:
        """See `Transport.write`."""
        await self._rpc.write(data)

    async def fail(self, failure: Failure) -> None:
        """See `Transport.fail`; always raises, since gRPC ends a handler by an exception."""
        details = status_of(failure).SerializeToString()
        trailing = (*self._trailing, (_DETAILS, details))
        code = grpc.StatusCode[failure.code.name]
        try:
            async with asyncio.timeout(_ABORT_TIMEOUT_S):
                await self._rpc.abort(code, failure.message, trailing)
        except TimeoutError:
            # The status is queued behind a response that the client does not read.  Ending the task
            # ends the call.
            raise asyncio.CancelledError from None
