"""A limit on concurrent work that is shared between tenants."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from samserve.errors import Overloaded

# A tenant may use this many times the free slots: alone it gets three quarters of all slots, and
# tenants that come later still find some (dynamic thresholds, Choudhury and Hahne 1998).
_FREE_FACTOR = 3


class TenantLimit:
    """*limit* slots for the things named *noun*; calls beyond the limit are rejected at once.

    *resource* is its name in metrics and errors.  While *shared* returns True, no tenant may use
    all slots; otherwise there is only one tenant, and it may.
    """

    def __init__(
        self, limit: int, noun: str, resource: str, *, shared: Callable[[], bool] = lambda: False
    ) -> None:
        self._limit = limit
        self._resource = resource
        self._noun = noun
        self._shared = shared
        self._by_tenant: Counter[str] = Counter()

    @property
    def in_use(self) -> int:
        """Slots in use now."""
        return self._by_tenant.total()

    @contextmanager
    def acquire(self, tenant: str, count: int = 1) -> Iterator[None]:
        """Use *count* slots while the block runs.  Raises `Overloaded`.

        A *count* above the limit is granted only while no other slot is in use.
        """
        self._check(tenant, count)
        self._by_tenant[tenant] += count
        try:
            yield
        finally:
            self._by_tenant[tenant] -= count
            if not self._by_tenant[tenant]:
                del self._by_tenant[tenant]

    def _check(self, tenant: str, count: int) -> None:
        free = self._limit - self.in_use
        if free < count and self.in_use:
            raise self._rejection(f"the limit of {self._limit} {self._noun} is reached")
        if self._shared() and self._by_tenant[tenant] >= _FREE_FACTOR * free:
            raise self._rejection(
                f"the last {free} of {self._limit} {self._noun} are reserved for other tenants"
            )

    def _rejection(self, message: str) -> Overloaded:
        return Overloaded(message, metadata={"limit": str(self._limit), "resource": self._resource})
