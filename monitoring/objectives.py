"""Every number of service levels and alerts, once.

An objective of latency is judged on `samserve_call_seconds`: calls that ended well, without the
time that the client took.  Its bound has to be one of that histogram's.
"""

from __future__ import annotations

from dataclasses import dataclass

PERIOD = "30d"
"""Time over which an error budget is counted."""


@dataclass(frozen=True, slots=True)
class Objective:
    """What an RPC promises: the part of its calls that is served, and the part that is quick."""

    method: str
    available: float
    quick: float
    within_s: float

    @property
    def error_budget(self) -> float:
        """The part of the calls that may fail."""
        return round(1 - self.available, 9)

    @property
    def slow_budget(self) -> float:
        """The part of the calls that may take longer than ``within_s``."""
        return round(1 - self.quick, 9)


OBJECTIVES = (
    Objective("Embed", available=0.999, quick=0.99, within_s=2.5),
    Objective("Predict", available=0.999, quick=0.99, within_s=0.25),
    Objective("AutoMask", available=0.995, quick=0.95, within_s=30),
)


@dataclass(frozen=True, slots=True)
class Burn:
    """A rate at which a budget may not be used up, 1 being the one that uses it up in `PERIOD`.

    It has to be exceeded in both windows: the long one says that it matters, the short one that it
    goes on.
    """

    factor: float
    long: str
    short: str


# "Alerting on SLOs", chapter 5 of The Site Reliability Workbook, "Multiwindow, Multi-Burn-Rate
# Alerts".  At these rates 2 % of the budget of 30 days are gone in an hour, 5 % in six hours, 10 %
# in a day, and 10 % in three days.
FAST_BURNS = (Burn(14.4, "1h", "5m"), Burn(6, "6h", "30m"))
SLOW_BURNS = (Burn(3, "1d", "2h"), Burn(1, "3d", "6h"))
LEAST_BAD_CALLS = 10
"""Calls in the long window that have to be bad; fewer are bad luck where traffic is small."""

# Long windows cost more to evaluate, and change slowly.
QUICK_WINDOWS = ("5m", "30m", "1h", "2h", "6h")
SLOW_WINDOWS = ("1d", "3d", PERIOD)

BAD_CODES = ("INTERNAL", "UNAVAILABLE", "UNKNOWN", "DATA_LOSS", "DEADLINE_EXCEEDED")
"""Ends of a call that are the server's doing."""
BAD_REASONS = ("OVERLOADED", "MEMORY_EXHAUSTED")
"""Refusals that are the server's doing; the others of RESOURCE_EXHAUSTED are quotas."""
IGNORED_CODES = ("CANCELLED",)
"""Ends that say nothing: the client has lost interest."""


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Numbers of the other alerts.  Ratios are 0 to 1; times in seconds are bounds of histograms
    where they are compared with one.
    """

    in_flight_ratio: float = 0.9
    """Calls in flight, of those that are let in."""
    refused_ratio: float = 0.01
    """Calls that are refused for overload."""
    queue_s: float = 1
    """A wait for a turn that is long for a person who clicks."""
    queued_ratio: float = 0.05
    """Embeds and Predicts that wait longer than that."""
    loop_lag_s: float = 0.1
    """A turn of the event loop that is late for everybody."""
    late_turns_ratio: float = 0.05
    """Turns that are later than that."""
    triton_queue_s: float = 0.5
    """Mean wait of a request in Triton."""
    quarantined_ratio: float = 0.25
    """Memory for embeddings that lost runs may still write into."""
    open_files_ratio: float = 0.8
    """Files that are open, of those that may be."""
    failed_runs_ratio: float = 0.01
    """Runs of a network that fail."""
    fallbacks_ratio: float = 0.05
    """Runs that send messages for want of shared memory."""
    internal_errors: int = 5
    """INTERNAL errors in a quarter of an hour: each is a defect, or a broken model."""
    restarts: int = 3
    """Starts of a gateway in an hour."""
    failed_prefetches_ratio: float = 0.1
    """Prefetches that fail; nobody is told of those."""
    cache_unavailable_ratio: float = 0.9
    """Lookups in the shared cache without an answer: it is as good as not there."""
    hit_ratio_part: float = 0.5
    """What is left of yesterday's hit ratio."""
    hit_ratio_before: float = 0.2
    """A hit ratio from which there is something to lose."""
    hit_lookups: int = 100
    """Lookups in half an hour that make a ratio meaningful."""
    traffic_before_per_s: float = 0.1
    """Calls a second, an hour ago, whose absence is strange."""


THRESHOLDS = Thresholds()
