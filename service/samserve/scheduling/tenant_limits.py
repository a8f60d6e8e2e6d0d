"""A limit on concurrent work that is shared between tenants."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

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
        self._by_tenant: dict[str, int] = {}
        self.in_use = 0
        """Slots in use now."""

    def acquire(self, tenant: str, count: int = 1) -> AbstractContextManager[None]:
        """Use *count* slots while the block runs.  Raises `Overloaded`.

        A *count* above the limit is granted only while no other slot is in use.
        """
        return _Acquired(self, tenant, count)

    def _acquire(self, tenant: str, count: int) -> None:
        used = self._by_tenant.get(tenant, 0)
        self._check(used, count)
        self._by_tenant[tenant] = used + count
        self.in_use += count

    def _release(self, tenant: str, count: int) -> None:
        self.in_use -= count
        left = self._by_tenant.pop(tenant, 0) - count
        if left:
            self._by_tenant[tenant] = left

    def _check(self, used: int, count: int) -> None:
        free = self._limit - self.in_use
        if free < count and self.in_use:
            raise self._rejection(f"the limit of {self._limit} {self._noun} is reached")
        if used >= _FREE_FACTOR * free and self._shared():
            raise self._rejection(
                f"the last {free} of {self._limit} {self._noun} are reserved for other tenants"
            )

    def _rejection(self, message: str) -> Overloaded:
        return Overloaded(message, metadata={"limit": str(self._limit), "resource": self._resource})


class _Acquired:
    """The block that uses slots; a class, as a generator costs twice as much, for every call."""

    __slots__ = ("_count", "_limit", "_tenant")

    def __init__(self, limit: TenantLimit, tenant: str, count: int) -> None:
        self._limit = limit
        self._tenant = tenant
        self._count = count

    def __enter__(self) -> None:
        self._limit._acquire(self._tenant, self._count)

    def __exit__(self, *_: object) -> None:
        self._limit._release(self._tenant, self._count)
