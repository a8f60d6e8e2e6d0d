"""Bounds on work in flight: one more call is refused at once instead of queued."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial

from samserve.errors import Overloaded
from samserve.rpc.methods import TYPES
from samserve.scheduling.tenant_limits import Places
from samserve.settings import AdmissionSettings

SLOW_REQUESTS = "slow requests"
SLOW_ANSWERS = "slow answers"
"""What is counted like methods: requests that were not there, answers not taken, at once."""
_SLOW = (SLOW_REQUESTS, SLOW_ANSWERS)


class Admission:
    """Counts calls by method and bytes over all; touched on the event loop only.

    With *shared*, no tenant takes all the places; otherwise there is one tenant, and it may.
    """

    def __init__(self, settings: AdmissionSettings, *, shared: Callable[[], bool]) -> None:
        most = {
            "Embed": settings.embed,
            "Predict": settings.predict,
            "AutoMask": settings.automask,
            SLOW_REQUESTS: settings.slow_requests,
            SLOW_ANSWERS: settings.slow_answers,
        }
        self._places = {
            method: Places(count, _many(method), _resource(method), shared=shared)
            for method, count in most.items()
        }
        self._others = partial(Places, settings.other, resource="calls", shared=shared)
        self.limits = {method: most.get(method, settings.other) for method in TYPES}
        """Calls of each method that may be in flight."""
        self._byte_limit = settings.request_bytes
        self._bytes = 0

    def busy(self) -> bool:
        """Whether any call is in flight."""
        return any(places.taken for places in self._places.values())

    def admit(self, method: str, tenant: str) -> AbstractContextManager[None]:
        """Count a call in for the length of the block.  Raises `Overloaded`."""
        if method not in self._places:
            self._places[method] = self._others(what=_many(method))
        return self._places[method].hold(tenant)

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


def _many(method: str) -> str:
    return method if method in _SLOW else f"{method} calls"


def _resource(method: str) -> str:
    return method.replace(" ", "_") if method in _SLOW else "calls"


def _refused(message: str, limit: int) -> Overloaded:
    return Overloaded(message, metadata={"limit": str(limit), "resource": "request_bytes"})
