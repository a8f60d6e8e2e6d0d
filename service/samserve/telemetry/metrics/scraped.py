"""Metrics that are read at the time of a scrape, in the thread of the scrape."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import ClassVar

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

Rows = Iterable[tuple[Sequence[str], float]]
"""Values of labels, and what there is under them."""


class ScrapedGauge(Collector):
    """What rises and falls; *read* returns it."""

    _metric: ClassVar[type[CounterMetricFamily | GaugeMetricFamily]] = GaugeMetricFamily

    def __init__(
        self,
        name: str,
        documentation: str,
        labelnames: Sequence[str],
        read: Callable[[], Rows],
        registry: CollectorRegistry,
    ) -> None:
        self._about = (name, documentation)
        self._labelnames = tuple(labelnames)
        self._read = read
        registry.register(self)

    def describe(self) -> list[Metric]:
        """Return the metric without samples, which tells the registry its name."""
        return [self._metric(*self._about, labels=self._labelnames)]

    def collect(self) -> Iterator[Metric]:
        """Read what there is now."""
        family = self._metric(*self._about, labels=self._labelnames)
        for labels, value in self._read():
            family.add_metric(labels, value)
        yield family


class ScrapedCounter(ScrapedGauge):
    """What only grows; *read* returns it."""

    _metric = CounterMetricFamily
