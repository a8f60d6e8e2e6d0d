"""Quotas of tenants and the rate limit of the server, checked before any work.

A rate limit is a token bucket: it is refilled at a constant rate up to *burst* tokens, and each
call takes one.  In any time *t*, at most ``burst + rate * t`` calls are admitted.
"""

from __future__ import annotations

import itertools
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial

from samserve.errors import QuotaExceeded
from samserve.security.policy import ConcurrentCalls, Policy, Quota, RateQuota
from samserve.security.principal import Allowance

_SERVER = "server"
# Labels of tenants that are counted together; neither is a valid name of a tenant.
_ALL, _OTHERS = "(server)", "(others)"
# Tenants with their own series in metrics.
_MAX_NAMED = 100
# Tenants whose usage is tracked at the same time; see `Quotas._remove_idle`.
_MAX_TENANTS = 10_000


class TokenBucket:
    """A token bucket; rate and capacity are passed with each operation."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        # Tokens missing from a full bucket, so that a changed burst or rate applies at once.
        self._missing = 0.0
        self._at = now()

    def wait_s(self, quota: RateQuota) -> float:
        """Return the seconds until a token is available; 0 if one is."""
        if quota.requests_per_s is None:
            return 0.0
        self._fill(quota.requests_per_s)
        # A bucket whose capacity was reduced cannot be more than empty.
        self._missing = min(self._missing, quota.bucket_size)
        required = 1 - (quota.bucket_size - self._missing)
        # Anything below is rounding error.
        return required / quota.requests_per_s if required > 1e-9 else 0.0

    def take(self, quota: RateQuota) -> None:
        """Take a token, after `wait_s` has returned 0."""
        if quota.requests_per_s is not None:
            self._missing += 1

    def is_full(self, quota: RateQuota) -> bool:
        """Return whether the bucket is full."""
        self._fill(quota.requests_per_s or 1.0)
        return self._missing == 0

    def _fill(self, rate: float) -> None:
        now = self._now()
        self._missing = max(0.0, self._missing - (now - self._at) * rate)
        self._at = now

    def used_ratio(self, quota: RateQuota) -> float:
        """Return the used ratio of the bucket, 0 to 1; may be called in another thread."""
        if quota.requests_per_s is None:
            return 0.0
        missing = self._missing - (self._now() - self._at) * quota.requests_per_s
        return min(1.0, max(0.0, missing) / quota.bucket_size)


@dataclass(slots=True, eq=False)
class _TenantUsage:
    bucket: TokenBucket
    calls: Counter[str] = field(default_factory=Counter)

    def is_idle(self, quota: Quota) -> bool:
        return not self.calls.total() and self.bucket.is_full(quota)

    def ratios(self, quota: Quota) -> Iterator[tuple[str, float]]:
        """Yield the name and the used ratio of each quota that is set."""
        if quota.requests_per_s is not None:
            yield "requests_per_s", self.bucket.used_ratio(quota)
        for name in ConcurrentCalls.model_fields:
            if limit := quota.concurrent(name):
                yield name, self.calls[name] / limit


class Quotas:
    """Enforces the quotas of tenants; used on the event loop only.

    *policy* is called for each call, so that a reloaded file applies at once.
    """

    def __init__(
        self, policy: Callable[[], Policy], now: Callable[[], float] = time.monotonic
    ) -> None:
        self._policy = policy
        self._now = now
        self._server = TokenBucket(now)
        # By tenant, in the order of their last calls.
        self._usage: OrderedDict[str, _TenantUsage] = OrderedDict()

    def allowance(self, tenant: str) -> Allowance:
        """Return the tenant's quota for one request."""
        quota = self._policy().quota(tenant)
        return Allowance(tenant, quota.max_image_pixels, quota.max_prompts)

    def used_ratios(self) -> list[tuple[str, str, float]]:
        """Return tenant, quota and used ratio (0 to 1) of all quotas in use.

        The first tenants of the policy file are listed by name; of all others together, the
        highest ratio of one tenant.  May be called in another thread.
        """
        policy = self._policy()
        named = set(itertools.islice(policy.tenants, _MAX_NAMED))
        highest: dict[tuple[str, str], float] = {}
        for tenant, usage in list(self._usage.items()):
            for quota, ratio in usage.ratios(policy.quota(tenant)):
                series = (tenant if tenant in named else _OTHERS, quota)
                highest[series] = max(ratio, highest.get(series, 0.0))
        if policy.server.requests_per_s is not None:
            highest[_ALL, "requests_per_s"] = self._server.used_ratio(policy.server)
        return [(*series, ratio) for series, ratio in highest.items()]

    def admit(self, name: str, tenant: str, method: str) -> AbstractContextManager[None]:
        """Count a call of *method* against the quota *name* while the block runs.

        Raises `QuotaExceeded`; the call is not counted then.
        """
        return _Admitted(partial(self._take, name, tenant, method), name)

    def _take(self, name: str, tenant: str, method: str) -> Counter[str]:
        """Count a call, and return the counter of the calls that run."""
        policy = self._policy()
        quota = policy.quota(tenant)
        usage = self._tenant_usage(tenant, policy)
        subject = f"tenant:{tenant}"
        limit = quota.concurrent(name)
        if limit is not None and usage.calls[name] >= limit:
            raise QuotaExceeded(
                f"the tenant's quota of {limit} concurrent {method} calls is reached",
                subject=subject,
                retry_after_s=1.0,
                metadata={"quota": name, "limit": str(limit)},
            )
        if quota.requests_per_s is not None or policy.server.requests_per_s is not None:
            _check_rate(usage.bucket, quota, subject)
            _check_rate(self._server, policy.server, _SERVER)
            usage.bucket.take(quota)
            self._server.take(policy.server)
        usage.calls[name] += 1
        return usage.calls

    def _tenant_usage(self, tenant: str, policy: Policy) -> _TenantUsage:
        usage = self._usage.get(tenant)
        if usage is None:
            if len(self._usage) >= _MAX_TENANTS:
                self._remove_idle(policy)
            usage = self._usage[tenant] = _TenantUsage(TokenBucket(self._now))
        self._usage.move_to_end(tenant)
        return usage

    def _remove_idle(self, policy: Policy) -> None:
        """Remove idle tenants: with a full bucket and no calls, their state equals a new one."""
        idle = [name for name, usage in self._usage.items() if usage.is_idle(policy.quota(name))]
        for name in idle:
            del self._usage[name]
        if len(self._usage) >= _MAX_TENANTS:
            raise QuotaExceeded(
                f"the limit of {_MAX_TENANTS} active tenants is reached",
                subject=_SERVER,
                retry_after_s=1.0,
                metadata={"quota": "tenants", "limit": str(_MAX_TENANTS)},
            )


class _Admitted:
    """The block in which a call counts; a class, as a generator costs twice as much."""

    __slots__ = ("_calls", "_name", "_take")

    def __init__(self, take: Callable[[], Counter[str]], name: str) -> None:
        self._take = take
        self._name = name

    def __enter__(self) -> None:
        self._calls = self._take()

    def __exit__(self, *_: object) -> None:
        self._calls[self._name] -= 1


def _check_rate(bucket: TokenBucket, quota: RateQuota, subject: str) -> None:
    wait_s = bucket.wait_s(quota)
    if wait_s <= 0:
        return
    owner = "the server" if subject == _SERVER else "the tenant"
    raise QuotaExceeded(
        f"the quota of {owner}, {quota.requests_per_s:g} requests per second, is exceeded",
        subject=subject,
        retry_after_s=wait_s,
        metadata={"quota": "requests_per_s", "limit": f"{quota.requests_per_s:g}"},
    )
