"""Counters, gauges and histograms that a call can afford to use thirty times.

Those of prometheus_client lock at each use, and its histograms go through their buckets one by one:
with them, metrics cost a click twice as much.  These are for one thread, and a scrape reads them in
another; to the registry they are collectors like any.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar, Generic, TypeVar

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar
from prometheus_client.utils import floatToGoString

Seen = tuple[dict[str, str], float]
"""The labels of an exemplar, and when it was seen, in seconds since the epoch."""
_Bucket = tuple[str, float] | tuple[str, float, Exemplar]


class Count:
    """How many there are; as a block, one more while it runs."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def inc(self, amount: float = 1) -> None:
        """Add."""
        self.value += amount

    def set(self, value: float) -> None:
        """Put in the place of what was."""
        self.value = value

    def __enter__(self) -> None:
        self.value += 1

    def __exit__(self, *_: object) -> None:
        self.value -= 1


class Histogram:
    """What was observed under one set of labels."""

    __slots__ = ("_bounds", "counts", "exemplars", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        """Observations by bucket, not added up; the last is of those beyond all bounds."""
        self.total = 0.0
        self.exemplars: dict[int, tuple[float, Seen]] = {}
        """The last that was traced, by bucket."""

    def observe(self, value: float, seen: Seen | None = None) -> None:
        """Count a value, with the trace that it belongs to, if it has one that is recorded."""
        bucket = bisect_left(self._bounds, value)
        self.counts[bucket] += 1
        self.total += value
        if seen is not None:
            self.exemplars[bucket] = value, seen

    def buckets(self, names: Sequence[str]) -> Iterator[_Bucket]:
        """Give what a scrape is told: observations up to each bound, which are named."""
        counts, below = self.counts.copy(), 0
        for bucket, name in enumerate(names):
            below += counts[bucket]
            found = self.exemplars.get(bucket)
            if found is None:
                yield name, below
            else:
                value, (labels, seen_at) = found
                yield name, below, Exemplar(labels, value, seen_at)


_Child = TypeVar("_Child", Count, Histogram)


class _Family(Collector, Generic[_Child]):
    """A metric: what there is of it, by its labels."""

    def __init__(
        self,
        name: str,
        documentation: str,
        labelnames: Sequence[str],
        registry: CollectorRegistry,
        *,
        make: Callable[[], _Child],
    ) -> None:
        self._about = (name, documentation)
        self._labelnames = tuple(labelnames)
        self._make: Callable[[], _Child] = make
        self._children: dict[tuple[str, ...], _Child] = {}
        registry.register(self)

    def labels(self, *values: str) -> _Child:
        """Give the one of these labels, a new one the first time."""
        found = self._children.get(values)
        if found is None:
            found = self._children[values] = self._make()
        return found

    def children(self) -> Iterator[tuple[tuple[str, ...], _Child]]:
        """Give all there are, by their labels; in any thread."""
        yield from self._children.copy().items()


class _Counts(_Family[Count]):
    _metric: ClassVar[type[CounterMetricFamily | GaugeMetricFamily]]

    def __init__(
        self, name: str, documentation: str, labelnames: Sequence[str], registry: CollectorRegistry
    ) -> None:
        super().__init__(name, documentation, labelnames, registry, make=Count)

    def describe(self) -> list[Metric]:
        """Tell the registry what is collected here."""
        return [self._metric(*self._about, labels=self._labelnames)]

    def collect(self) -> Iterator[Metric]:
        """Give what there is now."""
        family = self._metric(*self._about, labels=self._labelnames)
        for values, child in self.children():
            family.add_metric(values, child.value)
        yield family


class Counters(_Counts):
    """What only grows."""

    _metric: ClassVar[type[CounterMetricFamily | GaugeMetricFamily]] = CounterMetricFamily


class Gauges(_Counts):
    """What rises and falls."""

    _metric: ClassVar[type[CounterMetricFamily | GaugeMetricFamily]] = GaugeMetricFamily


class Histograms(_Family[Histogram]):
    """What has a size."""

    def __init__(
        self,
        name: str,
        documentation: str,
        labelnames: Sequence[str],
        bounds: Sequence[float],
        registry: CollectorRegistry,
    ) -> None:
        exact = tuple(map(float, bounds))
        self._names = (*map(floatToGoString, exact), "+Inf")
        super().__init__(name, documentation, labelnames, registry, make=lambda: Histogram(exact))

    def describe(self) -> list[Metric]:
        """Tell the registry what is collected here."""
        return [HistogramMetricFamily(*self._about, labels=self._labelnames)]

    def collect(self) -> Iterator[Metric]:
        """Give what was observed until now."""
        family = HistogramMetricFamily(*self._about, labels=self._labelnames)
        for values, child in self.children():
            family.add_metric(values, list(child.buckets(self._names)), child.total)
        yield family
