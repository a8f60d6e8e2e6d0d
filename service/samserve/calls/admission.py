"""Bounds on work in flight: a call above the limit is refused at once instead of queued."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial

from samserve.calls.methods import METHODS
from samserve.errors import Overloaded
from samserve.scheduling.tenant_limits import TenantLimit
from samserve.settings import AdmissionSettings


class Admission:
    """Counts calls by method, slow clients, and bytes over all; used on the event loop only.

    With *shared*, no tenant takes all the places; otherwise there is one tenant, and it may.
    """

    def __init__(self, settings: AdmissionSettings, *, shared: Callable[[], bool]) -> None:
        self.limits = {method.name: method.max_in_flight(settings) for method in METHODS}
        """Calls of each method that may be in flight."""
        limit = partial(TenantLimit, shared=shared)
        self._calls = {
            name: limit(most, f"{name} calls", "calls") for name, most in self.limits.items()
        }
        self.slow_requests = limit(settings.slow_requests, "slow requests", "slow_requests")
        """Requests that do not arrive at once."""
        self.slow_answers = limit(settings.slow_answers, "slow answers", "slow_answers")
        """Answers that are not taken at once."""
        self._byte_limit = settings.request_bytes
        self._bytes = 0

    def busy(self) -> bool:
        """Whether any call is in flight."""
        limits = (*self._calls.values(), self.slow_requests, self.slow_answers)
        return any(limit.taken for limit in limits)

    def admit(self, method: str, tenant: str) -> AbstractContextManager[None]:
        """Count a call in for the length of the block.  Raises `Overloaded`."""
        return self._calls[method].hold(tenant)

    @contextmanager
    def holding(self, nbytes: int) -> Iterator[None]:
        """Count the bytes of a request for the length of the block.  Raises `Overloaded`."""
        # A request over the whole budget still passes alone: its own limit is another one.
        if self._bytes and self._bytes + nbytes > self._byte_limit:
            raise Overloaded(
                f"requests of {self._byte_limit} bytes are in flight, the most that are taken",
                metadata={"limit": str(self._byte_limit), "resource": "request_bytes"},
            )
        self._bytes += nbytes
        try:
            yield
        finally:
            self._bytes -= nbytes
