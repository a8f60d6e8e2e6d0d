"""Counters, gauges and histograms without locks; each call updates about thirty of them.

Those of prometheus_client lock at each update, and its histograms search their buckets linearly:
with them, metrics would take twice as much of the time of a Predict.  These are updated by one
thread only, and a scrape reads them in another; to the registry they are ordinary collectors.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Generic, TypeVar

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.samples import Exemplar as Sample
from prometheus_client.utils import floatToGoString

from samserve.telemetry.metrics.scraped import MetricFamily, Rows

Exemplar = tuple[dict[str, str], float]
"""The labels of an exemplar, and its time in seconds since the epoch."""
_Bucket = tuple[str, float] | tuple[str, float, Sample]


class Value:
    """The value of one set of labels; as a context manager, incremented while the block runs."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def inc(self, amount: float = 1) -> None:
        """Add *amount*."""
        self.value += amount

    def set(self, value: float) -> None:
        """Set the value."""
        self.value = value

    def __enter__(self) -> None:
        self.value += 1

    def __exit__(self, *_: object) -> None:
        self.value -= 1


class Histogram:
    """The observations of one set of labels."""

    __slots__ = ("_bounds", "counts", "exemplars", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        """Observations by bucket, not cumulative; the last bucket is above all bounds."""
        self.total = 0.0
        self.exemplars: dict[int, tuple[float, Exemplar]] = {}
        """The last traced observation, by bucket."""

    def observe(self, value: float, exemplar: Exemplar | None = None) -> None:
        """Count a value, with the exemplar of its trace if the trace is recorded."""
        bucket = bisect_left(self._bounds, value)
        self.counts[bucket] += 1
        self.total += value
        if exemplar is not None:
            self.exemplars[bucket] = value, exemplar

    def buckets(self, names: Sequence[str]) -> Iterator[_Bucket]:
        """Yield the cumulative observations up to each bound, with exemplars, for a scrape."""
        counts, cumulative = self.counts.copy(), 0
        for bucket, name in enumerate(names):
            cumulative += counts[bucket]
            found = self.exemplars.get(bucket)
            if found is None:
                yield name, cumulative
            else:
                value, (labels, observed_at) = found
                yield name, cumulative, Sample(labels, value, observed_at)


_Child = TypeVar("_Child", Value, Histogram)


class _Children(dict[tuple[str, ...], _Child]):
    """Children by label values, each created when it is first looked up."""

    def __init__(self, new: Callable[[], _Child]) -> None:
        self._new: Callable[[], _Child] = new

    def __missing__(self, values: tuple[str, ...]) -> _Child:
        child = self[values] = self._new()
        return child


class _Family(MetricFamily, Generic[_Child]):
    """A metric with its children by label values."""

    def __init__(
        self, name: str, documentation: str, labelnames: Sequence[str], registry: CollectorRegistry
    ) -> None:
        self.children: _Children[_Child] = _Children(self._new)
        """See `labels`; without the call of a method, for what each call updates."""
        super().__init__(name, documentation, labelnames, registry)

    def labels(self, *values: str) -> _Child:
        """Return the child with these label values; it is created at first use."""
        return self.children[values]

    def _new(self) -> _Child:
        raise NotImplementedError


class _Values(_Family[Value]):
    def _new(self) -> Value:
        return Value()

    def _rows(self) -> Rows:
        return [(labels, child.value) for labels, child in dict(self.children).items()]


class Counters(_Values):
    """A family of counters."""

    _metric = CounterMetricFamily


class Gauges(_Values):
    """A family of gauges."""

    _metric = GaugeMetricFamily


class Histograms(_Family[Histogram]):
    """A family of histograms."""

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
        for labels, child in dict(self.children).items():
            yield labels, list(child.buckets(self._names)), child.total
