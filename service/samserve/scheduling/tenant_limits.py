"""Slots that tenants share: none takes them all while others may come."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from samserve.errors import Overloaded

# A tenant may hold this many times what is free: alone it gets three quarters of all slots, and
# those who come later still find some (dynamic thresholds, Choudhury and Hahne 1998).
_TIMES_FREE = 3


class TenantLimit:
    """A number of slots for *what*; one more is refused at once.

    *resource* is its name in metrics and errors.  While *shared* says so, no tenant takes all of
    them; otherwise there is one tenant, and it may.
    """

    def __init__(
        self, most: int, what: str, resource: str, *, shared: Callable[[], bool] = lambda: False
    ) -> None:
        self._most = most
        self._resource = resource
        self._what = what
        self._shared = shared
        self._by_tenant: Counter[str] = Counter()

    @property
    def taken(self) -> int:
        """Slots that are taken now."""
        return self._by_tenant.total()

    @contextmanager
    def hold(self, tenant: str, count: int = 1) -> Iterator[None]:
        """Hold so many slots for the length of the block.  Raises `Overloaded`.

        A *count* over all slots is had by a holder that is alone.
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
        free = self._most - self.taken
        if free < count and self.taken:
            raise self._refused(f"{self._most} {self._what} are in flight, the most that are taken")
        if self._shared() and self._by_tenant[tenant] >= _TIMES_FREE * free:
            raise self._refused(
                f"{free} of {self._most} places for {self._what} are kept for other tenants"
            )

    def _refused(self, message: str) -> Overloaded:
        return Overloaded(message, metadata={"limit": str(self._most), "resource": self._resource})
