"""Bounds on work in flight: one more call is refused at once instead of queued."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from samserve.errors import Overloaded
from samserve.settings import AdmissionSettings

SLOW_REQUESTS = "slow requests"
"""What is counted like a method: requests that were not there at once."""

# A tenant may hold this many times what is free: alone it gets three quarters of all places, and
# those who come later still find some (dynamic thresholds, Choudhury and Hahne 1998).
_TIMES_FREE = 3


class Admission:
    """Counts calls by method and bytes over all; touched on the event loop only.

    With *shared*, no tenant takes all the places; otherwise there is one tenant, and it may.
    """

    def __init__(self, settings: AdmissionSettings, *, shared: Callable[[], bool]) -> None:
        self._shared = shared
        self._limits = {
            "Embed": settings.embed,
            "Predict": settings.predict,
            "AutoMask": settings.automask,
            SLOW_REQUESTS: settings.slow_requests,
        }
        self._other = settings.other
        self._byte_limit = settings.request_bytes
        self._calls: Counter[str] = Counter()
        self._by_tenant: Counter[tuple[str, str]] = Counter()
        self._bytes = 0

    def busy(self) -> bool:
        """Whether any call is in flight."""
        return self._calls.total() > 0

    @contextmanager
    def admit(self, method: str, tenant: str) -> Iterator[None]:
        """Count a call in for the length of the block.  Raises `Overloaded`."""
        self._check(method, tenant)
        self._calls[method] += 1
        self._by_tenant[method, tenant] += 1
        try:
            yield
        finally:
            self._calls[method] -= 1
            self._by_tenant[method, tenant] -= 1
            if not self._by_tenant[method, tenant]:
                del self._by_tenant[method, tenant]

    @contextmanager
    def holding(self, nbytes: int) -> Iterator[None]:
        """Count the bytes of a request for the length of the block.  Raises `Overloaded`."""
        # A request over the whole budget still passes alone: its own limit is another one.
        if self._bytes and self._bytes + nbytes > self._byte_limit:
            raise _refused(
                f"requests of {self._byte_limit} bytes are in flight, the most that are taken",
                self._byte_limit,
            )
        self._bytes += nbytes
        try:
            yield
        finally:
            self._bytes -= nbytes

    def _check(self, method: str, tenant: str) -> None:
        limit = self._limits.get(method, self._other)
        free = limit - self._calls[method]
        if free <= 0:
            raise _refused(f"{limit} {_many(method)} are in flight, the most that are taken", limit)
        if self._shared() and self._by_tenant[method, tenant] >= _TIMES_FREE * free:
            raise _refused(
                f"{free} of {limit} places for {_many(method)} are kept for other tenants", limit
            )


def _many(method: str) -> str:
    return method if method == SLOW_REQUESTS else f"{method} calls"


def _refused(message: str, limit: int) -> Overloaded:
    return Overloaded(message, metadata={"limit": str(limit)})
