"""Counters, gauges and histograms that a call can afford to use thirty times.

Those of prometheus_client lock at each use, and its histograms go through their buckets one by one:
with them, metrics cost a click twice as much.  These are for one thread, and a scrape reads them in
another; to the registry they are collectors like any.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Generic, TypeVar

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.samples import Exemplar as Sample
from prometheus_client.utils import floatToGoString

from samserve.telemetry.metrics.scraped import Exported, Rows

Exemplar = tuple[dict[str, str], float]
"""The labels of an exemplar, and when it was seen, in seconds since the epoch."""
_Bucket = tuple[str, float] | tuple[str, float, Sample]


class Value:
    """A number under one set of labels; as a block, one more while it runs."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def inc(self, amount: float = 1) -> None:
        """Add."""
        self.value += amount

    def set(self, value: float) -> None:
        """Replace the number."""
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
        self.exemplars: dict[int, tuple[float, Exemplar]] = {}
        """The last that was traced, by bucket."""

    def observe(self, value: float, exemplar: Exemplar | None = None) -> None:
        """Count a value, with the trace that it belongs to, if it has one that is recorded."""
        bucket = bisect_left(self._bounds, value)
        self.counts[bucket] += 1
        self.total += value
        if exemplar is not None:
            self.exemplars[bucket] = value, exemplar

    def buckets(self, names: Sequence[str]) -> Iterator[_Bucket]:
        """Return what a scrape reads: observations up to each bound, which are named."""
        counts, below = self.counts.copy(), 0
        for bucket, name in enumerate(names):
            below += counts[bucket]
            found = self.exemplars.get(bucket)
            if found is None:
                yield name, below
            else:
                value, (labels, seen_at) = found
                yield name, below, Sample(labels, value, seen_at)


_Child = TypeVar("_Child", Value, Histogram)


class _Family(Exported, Generic[_Child]):
    """A metric: its children, by their labels."""

    def __init__(
        self, name: str, documentation: str, labelnames: Sequence[str], registry: CollectorRegistry
    ) -> None:
        self._children: dict[tuple[str, ...], _Child] = {}
        super().__init__(name, documentation, labelnames, registry)

    def labels(self, *values: str) -> _Child:
        """Return the child of these labels, a new one the first time."""
        found = self._children.get(values)
        if found is None:
            found = self._children[values] = self._new()
        return found

    def _new(self) -> _Child:
        raise NotImplementedError


class _Values(_Family[Value]):
    def _new(self) -> Value:
        return Value()

    def _rows(self) -> Rows:
        return [(labels, child.value) for labels, child in self._children.copy().items()]


class Counters(_Values):
    """What only grows."""

    _metric = CounterMetricFamily


class Gauges(_Values):
    """What rises and falls."""

    _metric = GaugeMetricFamily


class Histograms(_Family[Histogram]):
    """What has a size."""

    _metric = HistogramMetricFamily

    def __init__(
        self,
        name: str,
        documentation: str,
        labelnames: Sequence[str],
        bounds: Sequence[float],
        registry: CollectorRegistry,
    ) -> None:
        self._bounds = tuple(map(float, bounds))
        self._names = (*map(floatToGoString, self._bounds), "+Inf")
        super().__init__(name, documentation, labelnames, registry)

    def _new(self) -> Histogram:
        return Histogram(self._bounds)

    def _rows(self) -> Iterable[tuple[Any, ...]]:
        for labels, child in self._children.copy().items():
            yield labels, list(child.buckets(self._names)), child.total
