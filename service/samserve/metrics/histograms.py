"""Histograms that a call can afford to observe twenty times.

Those of prometheus_client lock, and go through their buckets one by one, at each observation: with
them, metrics cost a click twice as much.  These belong to one thread; a scrape reads them in
another.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar
from prometheus_client.utils import floatToGoString

_Bucket = tuple[str, float] | tuple[str, float, Exemplar]


class Histogram:
    """What was observed under one set of labels."""

    __slots__ = ("_bounds", "counts", "exemplars", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        """Observations by bucket, not added up; the last is of those beyond all bounds."""
        self.total = 0.0
        self.exemplars: dict[int, Exemplar] = {}
        """The last that was traced, by bucket."""

    def observe(self, value: float, trace_id: str = "") -> None:
        """Count a value, with the trace that it belongs to, if it has one that is recorded."""
        bucket = bisect_left(self._bounds, value)
        self.counts[bucket] += 1
        self.total += value
        if trace_id:
            self.exemplars[bucket] = Exemplar({"trace_id": trace_id}, value, time.time())


class Histograms(Collector):
    """A metric: histograms of the same bounds, by their labels."""

    def __init__(
        self,
        name: str,
        documentation: str,
        labelnames: Sequence[str],
        bounds: Sequence[float],
        registry: CollectorRegistry,
    ) -> None:
        self._name = name
        self._documentation = documentation
        self._labelnames = tuple(labelnames)
        self._bounds = tuple(map(float, bounds))
        self._names = (*map(floatToGoString, self._bounds), "+Inf")
        self._children: dict[tuple[str, ...], Histogram] = {}
        registry.register(self)

    def labels(self, *values: str) -> Histogram:
        """Give the histogram of these labels, a new one the first time."""
        return self._children.setdefault(values, Histogram(self._bounds))

    def describe(self) -> list[Metric]:
        """Tell the registry what is collected here."""
        return [self._family()]

    def collect(self) -> Iterator[Metric]:
        """Give what was observed until now."""
        family = self._family()
        for values, child in self._children.copy().items():
            family.add_metric(values, list(self._buckets(child)), child.total)
        yield family

    def _buckets(
        self, child: Histogram
    ) -> Iterator[tuple[str, float] | tuple[str, float, Exemplar]]:
        counts, below = child.counts.copy(), 0
        for bucket, name in enumerate(self._names):
            below += counts[bucket]
            exemplar = child.exemplars.get(bucket)
            yield (name, below) if exemplar is None else (name, below, exemplar)

    def _family(self) -> HistogramMetricFamily:
        return HistogramMetricFamily(self._name, self._documentation, labels=self._labelnames)
