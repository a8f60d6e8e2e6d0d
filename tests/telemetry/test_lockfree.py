"""Metrics without locks export the same samples as those of prometheus_client."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.samples import Sample
from samserve.telemetry.metrics.buckets import SECONDS
from samserve.telemetry.metrics.lockfree import Counters, Gauges, Histograms

LABELS = ("network", "model")
VALUES = st.one_of(
    st.floats(0, 100), st.sampled_from(SECONDS), st.sampled_from([math.nextafter(1, 2), math.inf])
)
OBSERVED = st.lists(
    st.tuples(st.sampled_from(["a", "b"]), VALUES, st.sampled_from(["", "ab" * 16, "cd" * 16]))
)


def samples(registry: CollectorRegistry) -> list[Sample]:
    """Return what a scrape reads, without times of creation and observation."""
    text = generate_openmetrics(registry).decode()
    return [
        sample._replace(
            exemplar=sample.exemplar and sample.exemplar._replace(timestamp=None), timestamp=None
        )
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.name.endswith("_created")
    ]


@given(OBSERVED)
def test_histograms_equal_those_of_prometheus_client(
    observed: list[tuple[str, float, str]],
) -> None:
    own_registry, reference_registry = CollectorRegistry(), CollectorRegistry()
    own = Histograms("run_seconds", "Time.", LABELS, SECONDS, own_registry)
    reference = Histogram(
        "run_seconds", "Time.", LABELS, buckets=SECONDS, registry=reference_registry
    )

    for model, value, trace_id in observed:
        exemplar = {"trace_id": trace_id} if trace_id else None
        own.labels("decoder", model).observe(value, exemplar and (exemplar, 1.5))
        reference.labels("decoder", model).observe(value, exemplar)

    assert samples(own_registry) == samples(reference_registry)


def test_counters_and_gauges_equal_those_of_prometheus_client() -> None:
    own_registry, reference_registry = CollectorRegistry(), CollectorRegistry()
    counters, gauges = (
        Counters("runs", "Runs.", LABELS, own_registry),
        Gauges("now", "Now.", LABELS, own_registry),
    )
    counter = Counter("runs", "Runs.", LABELS, registry=reference_registry)
    gauge = Gauge("now", "Now.", LABELS, registry=reference_registry)
    for model in ("a", "b", "a"):
        counters.labels("decoder", model).inc()
        counters.labels("encoder", model).inc(2.5)
        counter.labels("decoder", model).inc()
        counter.labels("encoder", model).inc(2.5)
    with gauges.labels("decoder", "a"), gauge.labels("decoder", "a").track_inprogress():
        assert samples(own_registry) == samples(reference_registry)
    gauges.labels("encoder", "a").set(7)
    gauge.labels("encoder", "a").set(7)

    assert samples(own_registry) == samples(reference_registry)
