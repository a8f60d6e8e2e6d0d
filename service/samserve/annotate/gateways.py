"""The gateways of a run, used evenly."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from samserve import errors
from samserve.annotate.retries import Retries
from samserve.client import (
    Cancelled,
    Catalog,
    Client,
    ResourceExhausted,
    SamserveClientError,
    Unavailable,
)

T = TypeVar("T")

GIVE_UP_S = 60.0
"""A run ends when no gateway has been available for so long."""
_MIN_PAUSE_S, _MAX_PAUSE_S = 0.5, 15.0
# An image that makes a gateway fail must not end all of them.
_MAX_FAILURES_OF_ITEM = 5


@dataclass(slots=True, eq=False)
class _Gateway:
    client: Client
    name: str
    under_way: int = 0
    calls: int = 0
    pause_s: float = 0.0
    """How long it is avoided; 0 while it is available."""
    avoided_until: float = 0.0
    unavailable_since: float = 0.0

    @contextmanager
    def used(self) -> Iterator[None]:
        self.under_way += 1
        self.calls += 1
        try:
            yield
        finally:
            self.under_way -= 1

    def avoid(self, now: float, at_least_s: float) -> None:
        """Avoid the gateway for a while, twice as long as the last time."""
        if not self.pause_s:
            self.unavailable_since = now
        self.pause_s = min(max(2 * self.pause_s, at_least_s, _MIN_PAUSE_S), _MAX_PAUSE_S)
        self.avoided_until = now + self.pause_s


class Gateways:
    """Open clients; used on the event loop only.

    *names* are those of the gateways in errors.  A gateway that becomes unavailable is avoided for
    a while; before it is used again, its models are compared with those at the start.
    """

    def __init__(
        self,
        clients: Sequence[Client],
        names: Sequence[str] = (),
        *,
        on_retry: Callable[[ResourceExhausted], None] = lambda error: None,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        names = names or [f"gateway {number}" for number in range(1, len(clients) + 1)]
        self._gateways = [
            _Gateway(client, name) for client, name in zip(clients, names, strict=True)
        ]
        self._retries = Retries(on_retry)
        self._now, self._sleep = now, sleep
        self._successes = 0
        self._served: Mapping[str, str] | None = None

    def __len__(self) -> int:
        """Return the number of gateways."""
        return len(self._gateways)

    async def models(self) -> Catalog:
        """Return the models and limits.

        Raises `samserve.errors.Misconfigured` if gateways serve other weights, and the classes of
        `samserve.client.errors` if none responds.
        """
        results = await asyncio.gather(
            *(gateway.client.models() for gateway in self._gateways), return_exceptions=True
        )
        catalog: Catalog | None = None
        failure: SamserveClientError | None = None
        for gateway, result in zip(self._gateways, results, strict=True):
            if isinstance(result, Catalog):
                self._compare(gateway, result)
                catalog = catalog or result
            elif isinstance(result, Unavailable):
                failure = result
                gateway.avoid(self._now(), 0.0)
            else:
                raise result
        if catalog is None:
            assert failure is not None, "there is at least one gateway"
            raise failure
        return catalog

    async def call(self, use: Callable[[Client], Awaitable[T]]) -> T:
        """Run *use* with the gateway that has the fewest calls under way.

        A call that is rejected because the gateway is busy, or that finds it unavailable, is
        repeated, on another one if there is one.  Raises the classes of `samserve.client.errors`;
        `Unavailable` if no gateway has been available for `GIVE_UP_S`.  Raises
        `samserve.errors.Unavailable` for a call during which gateways become unavailable again and
        again, while they are available to others.
        """
        attempts = _Attempts(self._successes)
        return await self._retries.run(lambda: self._accepted(use, attempts))

    async def _accepted(self, use: Callable[[Client], Awaitable[T]], attempts: _Attempts) -> T:
        """Run *use* with one gateway after another until one accepts it."""
        busy: dict[_Gateway, ResourceExhausted] = {}
        while True:
            gateway = await self._choose(busy)
            try:
                with gateway.used():
                    result = await use(gateway.client)
            except ResourceExhausted as error:
                if error.retry_after_s is None:
                    raise
                busy[gateway] = error
                if len(busy) == len(self._gateways):
                    raise
                continue
            except (Unavailable, Cancelled) as error:
                gateway.avoid(self._now(), error.retry_after_s or 0.0)
                attempts.failed(error, self._successes)
                continue
            self._successes += 1
            return result

    async def _choose(self, busy: Mapping[_Gateway, ResourceExhausted]) -> _Gateway:
        """Return the available gateway with the fewest calls; wait until there is one.

        Raises the error of a *busy* one if all others are unavailable.
        """
        while True:
            now = self._now()
            ready = [each for each in self._gateways if each not in busy]
            ready = [each for each in ready if each.avoided_until <= now]
            for gateway in sorted(ready, key=lambda each: (each.under_way, each.calls)):
                if not gateway.pause_s or await self._has_returned(gateway):
                    return gateway
            if busy:
                raise next(iter(busy.values()))
            await self._sleep(self._wait_s())

    def _wait_s(self) -> float:
        """Return the time until a gateway may be tried again."""
        first = min(each.avoided_until for each in self._gateways)
        return max(first - self._now(), 0.05)

    async def _has_returned(self, gateway: _Gateway) -> bool:
        """Return whether a gateway that was unavailable is available, with the same weights."""
        # Other calls do not wait for the answer.
        gateway.avoid(self._now(), 0.0)
        try:
            catalog = await gateway.client.models()
        except (Unavailable, Cancelled):
            if self._all_unavailable_s() >= GIVE_UP_S:
                raise
            return False
        self._compare(gateway, catalog)
        gateway.pause_s = gateway.avoided_until = 0.0
        return True

    def _all_unavailable_s(self) -> float:
        """Return for how long no gateway has been available."""
        if not all(each.pause_s for each in self._gateways):
            return 0.0
        return self._now() - max(each.unavailable_since for each in self._gateways)

    def _compare(self, gateway: _Gateway, catalog: Catalog) -> None:
        served = {model.name: model.digest for model in catalog.models}
        if self._served is None:
            self._served = served
        if served != self._served:
            differing = sorted(set(served.items()) ^ set(self._served.items()))
            raise errors.Misconfigured(
                f"{gateway.name} serves other weights of {differing[0][0]!r} than the others, or "
                "than before"
            )


@dataclass(slots=True)
class _Attempts:
    """The gateways that became unavailable during one call."""

    successes: int
    failures: int = field(default=0)

    def failed(self, error: SamserveClientError, successes: int) -> None:
        """Count a failure if other calls have succeeded since the last one.

        Raises `samserve.errors.Unavailable` after too many.
        """
        self.failures += successes > self.successes
        self.successes = successes
        if self.failures >= _MAX_FAILURES_OF_ITEM:
            raise errors.Unavailable(
                f"the server became unavailable {self.failures} times: {error.message}"
            )
