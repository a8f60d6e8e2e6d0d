"""Limits on concurrent calls and their bytes: a call over a limit is rejected, not queued."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial

from samserve.calls.methods import DOWNLOAD_DECODER, METHODS
from samserve.errors import Overloaded
from samserve.scheduling.tenant_limits import TenantLimit
from samserve.settings import AdmissionSettings


class Admission:
    """Counts calls by method, slow clients, and request bytes; used on the event loop only.

    While *shared* returns true, no tenant can use all slots; otherwise there is one tenant, and it
    may.
    """

    def __init__(self, settings: AdmissionSettings, *, shared: Callable[[], bool]) -> None:
        calls = (*METHODS, DOWNLOAD_DECODER)
        self.limits = {method.name: method.max_in_flight(settings) for method in calls}
        """The maximum number of concurrent calls of each method."""
        limit = partial(TenantLimit, shared=shared)
        self._calls = {
            name: limit(maximum, f"concurrent {name} calls", "calls")
            for name, maximum in self.limits.items()
        }
        self.slow_requests = limit(settings.max_slow_requests, "slow requests", "slow_requests")
        """Requests that take longer than `SLOW_AFTER_S` to arrive."""
        self.slow_responses = limit(settings.max_slow_responses, "slow responses", "slow_responses")
        """Responses that take longer than `SLOW_AFTER_S` to send."""
        self._byte_limit = settings.max_in_flight_request_bytes
        self._bytes = 0

    def busy(self) -> bool:
        """Return whether any call is in flight."""
        limits = (*self._calls.values(), self.slow_requests, self.slow_responses)
        return any(limit.in_use for limit in limits)

    def admit(self, method: str, tenant: str) -> AbstractContextManager[None]:
        """Hold a slot for a call for the length of the block.  Raises `Overloaded`."""
        return self._calls[method].acquire(tenant)

    def admit_bytes(self, nbytes: int) -> RequestBytes:
        """Count the bytes of a request for the length of the block.  Raises `Overloaded`."""
        return RequestBytes(self, nbytes)

    def _add_bytes(self, nbytes: int, own: int = 0) -> None:
        # A request over the whole budget is admitted alone: its size has a limit of its own.
        if self._bytes > own and self._bytes + nbytes > self._byte_limit:
            raise Overloaded(
                f"the limit of {self._byte_limit} bytes of concurrent requests is reached",
                metadata={"limit": str(self._byte_limit), "resource": "request_bytes"},
            )
        self._bytes += nbytes


class RequestBytes:
    """The block in which the bytes of a request count."""

    __slots__ = ("_admission", "_nbytes")

    def __init__(self, admission: Admission, nbytes: int) -> None:
        self._admission = admission
        self._nbytes = nbytes

    def __enter__(self) -> None:
        self._admission._add_bytes(self._nbytes)

    def add(self, nbytes: int) -> None:
        """Count more bytes of the same request.  Raises `Overloaded`."""
        self._admission._add_bytes(nbytes, own=self._nbytes)
        self._nbytes += nbytes

    def __exit__(self, *_: object) -> None:
        self._admission._bytes -= self._nbytes
