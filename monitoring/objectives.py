"""Service level objectives and alert thresholds; every number is defined here once.

A latency objective is evaluated on `samserve_call_seconds`: calls with status OK, without the time
of the client.  Its threshold must be a bucket bound of that histogram.
"""

from __future__ import annotations

from dataclasses import dataclass

PERIOD = "30d"
"""Period of an error budget."""


@dataclass(frozen=True, slots=True)
class Objective:
    """The objectives of one RPC.

    ``availability`` is the ratio of calls that must succeed, ``latency`` the ratio of successful
    calls that must take at most ``threshold_s``.
    """

    method: str
    availability: float
    latency: float
    threshold_s: float

    @property
    def error_budget(self) -> float:
        """The ratio of calls that may fail."""
        return round(1 - self.availability, 9)

    @property
    def latency_budget(self) -> float:
        """The ratio of successful calls that may take longer than ``threshold_s``."""
        return round(1 - self.latency, 9)


OBJECTIVES = (
    Objective("Embed", availability=0.999, latency=0.99, threshold_s=2.5),
    Objective("Predict", availability=0.999, latency=0.99, threshold_s=0.25),
    Objective("AutoMask", availability=0.995, latency=0.95, threshold_s=30),
)


@dataclass(frozen=True, slots=True)
class BurnRate:
    """A burn rate that raises an alert; at rate 1 the budget is used up in exactly `PERIOD`.

    The rate must be exceeded in both windows: the long one shows that it is significant, the short
    one that it still continues.
    """

    factor: float
    long: str
    short: str


# "Alerting on SLOs", chapter 5 of The Site Reliability Workbook, "Multiwindow, Multi-Burn-Rate
# Alerts".  These rates use up 2 % of a budget of 30 days in an hour, 5 % in six hours, 10 % in a
# day, and 10 % in three days.
FAST_BURN_RATES = (BurnRate(14.4, "1h", "5m"), BurnRate(6, "6h", "30m"))
SLOW_BURN_RATES = (BurnRate(3, "1d", "2h"), BurnRate(1, "3d", "6h"))
MIN_BAD_CALLS = 10
"""Least number of failed or slow calls in the long window; with little traffic, fewer are noise."""

# Long windows cost more to evaluate, and change slowly.
SHORT_WINDOWS = ("5m", "30m", "1h", "2h", "6h")
LONG_WINDOWS = ("1d", "3d", PERIOD)

ERROR_CODES = ("INTERNAL", "UNAVAILABLE", "UNKNOWN", "DATA_LOSS", "DEADLINE_EXCEEDED")
"""Status codes that count as server errors."""
ERROR_REASONS = ("OVERLOADED", "MEMORY_EXHAUSTED")
"""Reasons of RESOURCE_EXHAUSTED that count as server errors; the others are quotas."""
IGNORED_CODES = ("CANCELLED",)
"""Status codes that count neither as success nor as failure: the client cancelled the call."""


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Thresholds of the other alerts.

    Ratios are 0 to 1.  Times are in seconds, and bucket bounds where they are compared with a
    histogram.
    """

    in_flight_ratio: float = 0.9
    """Calls in flight relative to the limit."""
    rejected_ratio: float = 0.01
    """Calls that are rejected with OVERLOADED."""
    queue_s: float = 1
    """A queue time that is long for an interactive user."""
    queued_ratio: float = 0.05
    """Embed and Predict calls with a longer queue time."""
    loop_lag_s: float = 0.1
    """A lag of the event loop that delays every call noticeably."""
    loop_lag_ratio: float = 0.05
    """Measurements of the event loop with a longer lag."""
    triton_queue_s: float = 0.5
    """Mean time of a request in Triton's queue."""
    quarantined_ratio: float = 0.25
    """Local cache memory that requests without a response may still write to."""
    open_files_ratio: float = 0.8
    """Open file descriptors relative to the limit."""
    failed_runs_ratio: float = 0.01
    """Failed inferences, and failed requests to Triton."""
    fallbacks_ratio: float = 0.05
    """Inferences sent in messages because the shared memory pool is exhausted."""
    internal_errors: int = 5
    """INTERNAL errors in 15 minutes: each is a defect, or a broken model."""
    restarts: int = 3
    """Starts of a gateway in an hour."""
    failed_prefetches_ratio: float = 0.1
    """Failed prefetches, which no client sees."""
    cache_unavailable_ratio: float = 0.9
    """Lookups in the shared cache without a response: it is effectively down."""
    hit_ratio_drop: float = 0.5
    """Hit ratio relative to that of the day before."""
    min_hit_ratio: float = 0.2
    """Hit ratio of the day before from which a drop matters."""
    min_lookups: int = 100
    """Lookups in 30 minutes that make a ratio significant."""
    min_traffic_per_s: float = 0.1
    """Calls per second an hour ago from which their absence is unexpected."""


THRESHOLDS = Thresholds()
