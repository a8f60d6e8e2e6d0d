"""Metrics whose values are read at a scrape, in the thread of the scrape."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

Rows = Iterable[tuple[Sequence[str], float]]
"""Label values, and the value of that series."""


class MetricFamily(Collector):
    """Base class of metrics; subclasses provide the values."""

    _metric: ClassVar[type[CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily]]

    def __init__(
        self, name: str, documentation: str, labelnames: Sequence[str], registry: CollectorRegistry
    ) -> None:
        self._about = (name, documentation)
        self._labelnames = tuple(labelnames)
        registry.register(self)

    def describe(self) -> list[Metric]:
        """Return the metric without samples, from which the registry takes its name."""
        return [self._metric(*self._about, labels=self._labelnames)]

    def collect(self) -> Iterator[Metric]:
        """Yield the metric with its current samples; called in another thread."""
        family: Any = self._metric(*self._about, labels=self._labelnames)
        for row in self._rows():
            family.add_metric(*row)
        yield family

    def _rows(self) -> Iterable[tuple[Any, ...]]:
        """Return the arguments of `add_metric` for each set of labels."""
        raise NotImplementedError


class ScrapedGauge(MetricFamily):
    """A gauge; *read* returns its values."""

    _metric: ClassVar[type[CounterMetricFamily | GaugeMetricFamily]] = GaugeMetricFamily

    def __init__(
        self,
        name: str,
        documentation: str,
        labelnames: Sequence[str],
        read: Callable[[], Rows],
        registry: CollectorRegistry,
    ) -> None:
        self._read = read
        super().__init__(name, documentation, labelnames, registry)

    def _rows(self) -> Rows:
        return self._read()


class ScrapedCounter(ScrapedGauge):
    """A counter; *read* returns its values."""

    _metric = CounterMetricFamily
