"""Quotas of tenants, and the rate of the whole server: decided before any work.

A rate is a token bucket: tokens arrive steadily, a call takes one, and there is room for *burst*.
In any time *t*, at most ``burst + rate * t`` calls pass.
"""

from __future__ import annotations

import itertools
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from samserve.errors import QuotaExceeded
from samserve.security.policy import ConcurrentCalls, Policy, Quota, RateQuota
from samserve.security.principal import Allowance

_SERVER = "server"
# Who is counted together; no tenant has such a name.
_ALL, _OTHERS = "(server)", "(others)"
# Tenants that metrics tell apart.
_MOST_NAMED = 100
# Tenants whose use is remembered at once; see `Quotas._forget`.
_MOST_TENANTS = 10_000


class TokenBucket:
    """Tokens that arrive at a steady rate, up to a number."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        # What is missing from a full bucket, so that a new burst or rate holds at once.
        self._missing = 0.0
        self._at = now()

    def wait_s(self, quota: RateQuota) -> float:
        """Seconds until there is a token; 0 if there is one."""
        if quota.requests_per_s is None:
            return 0.0
        self._fill(quota.requests_per_s)
        # A bucket that was made smaller is empty at most.
        self._missing = min(self._missing, quota.bucket_size)
        lacking = 1 - (quota.bucket_size - self._missing)
        # Less than this is the rounding of sums.
        return lacking / quota.requests_per_s if lacking > 1e-9 else 0.0

    def take(self, quota: RateQuota) -> None:
        """Take a token that `wait_s` has said to be there."""
        if quota.requests_per_s is not None:
            self._missing += 1

    def full(self, quota: RateQuota) -> bool:
        """Whether nothing is missing."""
        self._fill(quota.requests_per_s or 1.0)
        return self._missing == 0

    def _fill(self, rate: float) -> None:
        now = self._now()
        self._missing = max(0.0, self._missing - (now - self._at) * rate)
        self._at = now

    def used_ratio(self, quota: RateQuota) -> float:
        """How much of the bucket is missing, 0 to 1; may be called in another thread."""
        if quota.requests_per_s is None:
            return 0.0
        missing = self._missing - (self._now() - self._at) * quota.requests_per_s
        return min(1.0, max(0.0, missing) / quota.bucket_size)


@dataclass(slots=True, eq=False)
class _Use:
    bucket: TokenBucket
    calls: Counter[str] = field(default_factory=Counter)

    def is_idle(self, quota: Quota) -> bool:
        return not self.calls.total() and self.bucket.full(quota)

    def ratios(self, quota: Quota) -> Iterator[tuple[str, float]]:
        """Name the quotas that there are, and how much of each is used."""
        if quota.requests_per_s is not None:
            yield "requests_per_s", self.bucket.used_ratio(quota)
        for name in ConcurrentCalls.model_fields:
            if limit := quota.concurrent(name):
                yield name, self.calls[name] / limit


class Quotas:
    """Holds every tenant to its quota; used on the event loop only.

    *policy* is called for each call, so that a changed file applies from then on.
    """

    def __init__(
        self, policy: Callable[[], Policy], now: Callable[[], float] = time.monotonic
    ) -> None:
        self._policy = policy
        self._now = now
        self._server = TokenBucket(now)
        # By tenant, the one that has called least recently first.
        self._uses: OrderedDict[str, _Use] = OrderedDict()

    def allowance(self, tenant: str) -> Allowance:
        """What one request of the tenant may contain."""
        quota = self._policy().quota(tenant)
        return Allowance(tenant, quota.image_pixels, quota.prompts)

    def used(self) -> list[tuple[str, str, float]]:
        """Return how much of their quotas tenants use: tenant, quota, and 0 to 1.

        Tenants by name are those of the policy file, up to a number; of the others, together, the
        one counts that uses most.  May be called in another thread.
        """
        policy = self._policy()
        named = set(itertools.islice(policy.tenants, _MOST_NAMED))
        most: dict[tuple[str, str], float] = {}
        for tenant, use in list(self._uses.items()):
            for quota, ratio in use.ratios(policy.quota(tenant)):
                of = (tenant if tenant in named else _OTHERS, quota)
                most[of] = max(ratio, most.get(of, 0.0))
        if policy.server.requests_per_s is not None:
            most[_ALL, "requests_per_s"] = self._server.used_ratio(policy.server)
        return [(*of, ratio) for of, ratio in most.items()]

    @contextmanager
    def admit(self, limits: str, tenant: str, method: str) -> Iterator[None]:
        """Count a call of *method*, whose quota has the name *limits*, for the length of the block.

        Raises `QuotaExceeded`, and counts nothing then.
        """
        policy = self._policy()
        quota = policy.quota(tenant)
        use = self._use(tenant, policy)
        subject = f"tenant:{tenant}"
        limit = quota.concurrent(limits)
        if limit is not None and use.calls[limits] >= limit:
            raise QuotaExceeded(
                f"{limit} {method} calls of this tenant are in flight, its quota",
                subject=subject,
                retry_after_s=1.0,
                metadata={"quota": limits, "limit": str(limit)},
            )
        _check_rate(use.bucket, quota, subject)
        _check_rate(self._server, policy.server, _SERVER)
        use.bucket.take(quota)
        self._server.take(policy.server)
        use.calls[limits] += 1
        try:
            yield
        finally:
            use.calls[limits] -= 1

    def _use(self, tenant: str, policy: Policy) -> _Use:
        use = self._uses.get(tenant)
        if use is None:
            if len(self._uses) >= _MOST_TENANTS:
                self._forget(policy)
            use = self._uses[tenant] = _Use(TokenBucket(self._now))
        self._uses.move_to_end(tenant)
        return use

    def _forget(self, policy: Policy) -> None:
        """Make room: who has used nothing lately is as good as new, and loses nothing."""
        idle = [name for name, use in self._uses.items() if use.is_idle(policy.quota(name))]
        for name in idle:
            del self._uses[name]
        if len(self._uses) >= _MOST_TENANTS:
            raise QuotaExceeded(
                f"{_MOST_TENANTS} tenants are active, the most that are taken",
                subject=_SERVER,
                retry_after_s=1.0,
                metadata={"quota": "tenants", "limit": str(_MOST_TENANTS)},
            )


def _check_rate(bucket: TokenBucket, quota: RateQuota, subject: str) -> None:
    wait_s = bucket.wait_s(quota)
    if wait_s <= 0:
        return
    of = "the whole server" if subject == _SERVER else "this tenant"
    raise QuotaExceeded(
        f"{quota.requests_per_s:g} requests a second are the quota of {of}",
        subject=subject,
        retry_after_s=wait_s,
        metadata={"quota": "requests_per_s", "limit": f"{quota.requests_per_s:g}"},
    )
