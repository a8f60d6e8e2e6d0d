"""Bounds on work in flight: a call above the limit is refused at once instead of queued."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

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
        self._calls = {
            name: TenantLimit(limit, f"{name} calls", "calls", shared=shared)
            for name, limit in self.limits.items()
        }
        self._slow_requests, self._slow_answers = (
            TenantLimit(limit, f"slow {what}", f"slow_{what}", shared=shared)
            for what, limit in [
                ("requests", settings.slow_requests),
                ("answers", settings.slow_answers),
            ]
        )
        self._byte_limit = settings.request_bytes
        self._bytes = 0

    def busy(self) -> bool:
        """Whether any call is in flight."""
        limits = (*self._calls.values(), self._slow_requests, self._slow_answers)
        return any(limit.taken for limit in limits)

    def admit(self, method: str, tenant: str) -> AbstractContextManager[None]:
        """Count a call in for the length of the block.  Raises `Overloaded`."""
        return self._calls[method].hold(tenant)

    def slow_request(self, tenant: str) -> AbstractContextManager[None]:
        """Count a request that did not arrive at once, likewise."""
        return self._slow_requests.hold(tenant)

    def slow_answer(self, tenant: str) -> AbstractContextManager[None]:
        """Count an answer that was not taken at once, likewise."""
        return self._slow_answers.hold(tenant)

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
