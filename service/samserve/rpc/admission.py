"""Bounds on work in flight: one more call is refused at once instead of queued."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from samserve.errors import Overloaded
from samserve.settings import AdmissionSettings


class Admission:
    """Counts calls by method and bytes over all; touched on the event loop only."""

    def __init__(self, settings: AdmissionSettings) -> None:
        self._limits = {
            "Embed": settings.embed,
            "Predict": settings.predict,
            "AutoMask": settings.automask,
        }
        self._byte_limit = settings.request_bytes
        self._calls: Counter[str] = Counter()
        self._bytes = 0

    @contextmanager
    def admit(self, method: str, nbytes: int) -> Iterator[None]:
        """Count a call in for the length of the block.  Raises `Overloaded`."""
        limit = self._limits.get(method)
        if limit is not None and self._calls[method] >= limit:
            raise _refused(f"{limit} {method} calls are in flight, the most that are taken", limit)
        # A request over the whole budget still passes alone: its own limit is another one.
        if self._bytes and self._bytes + nbytes > self._byte_limit:
            raise _refused(
                f"requests of {self._byte_limit} bytes are in flight, the most that are taken",
                self._byte_limit,
            )
        self._calls[method] += 1
        self._bytes += nbytes
        try:
            yield
        finally:
            self._calls[method] -= 1
            self._bytes -= nbytes


def _refused(message: str, limit: int) -> Overloaded:
    return Overloaded(message, metadata={"limit": str(limit)})
