"""Calls that take more than one request."""

from __future__ import annotations

import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Self, TypeVar

from samserve.client.errors import EmbeddingNotFound
from samserve.client.images import Upload
from samserve.v1 import samserve_pb2 as pb

_Response = TypeVar("_Response")

_now = time.monotonic
# gRPC takes a timeout that is much longer for one that has passed.
_LONGEST_S = 365 * 86400.0


@dataclass(frozen=True, slots=True)
class Call:
    """What all requests of one call have in common: their id, and when they end at the latest."""

    request_id: str
    deadline: float | None

    @classmethod
    def begin(cls, request_id: str, timeout_s: float | None) -> Self:
        """Begin a call; an empty *request_id* makes a new one."""
        deadline = None if timeout_s is None else _now() + min(timeout_s, _LONGEST_S)
        return cls(request_id or uuid.uuid4().hex, deadline)

    def left_s(self) -> float | None:
        """Seconds that are left, at least 0; None without a deadline."""
        return None if self.deadline is None else max(0.0, self.deadline - _now())


async def asking_first(
    upload: Upload, send: Callable[[pb.Image], Awaitable[_Response]]
) -> _Response:
    """Send the digest if there is one; the image if there is none, or the server's miss."""
    if upload.digest is not None:
        try:
            return await send(upload.digest)
        except EmbeddingNotFound:
            pass
    return await send(upload.message)
