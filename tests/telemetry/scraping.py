"""Metrics as Prometheus scrapes them: over HTTP, from the admin listener."""

from __future__ import annotations

import http.client
from collections.abc import Iterable

from prometheus_client.core import Metric
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families as parse_plain
from prometheus_client.samples import Sample
from samserve.app import Running

OPENMETRICS = "application/openmetrics-text"
PLAIN = "text/plain"


def scrape(service: Running, accept: str | None = None) -> tuple[int, str, str]:
    """Return status, content type and text.

    This blocks the event loop, which the listener does not use.
    """
    connection = http.client.HTTPConnection(service.admin_address, timeout=60)
    try:
        connection.request("GET", "/metrics", headers={} if accept is None else {"Accept": accept})
        response = connection.getresponse()
        return response.status, response.headers["Content-Type"], response.read().decode()
    finally:
        connection.close()


def samples(service: Running, accept: str = OPENMETRICS) -> list[Sample]:
    """Scrape and parse."""
    _, content_type, text = scrape(service, accept)
    return [sample for family in parsed(content_type, text) for sample in family.samples]


def parsed(content_type: str, text: str) -> Iterable[Metric]:
    """Parse with the parser of the content type."""
    if content_type.startswith(OPENMETRICS):
        return list(parse_openmetrics(text))
    assert content_type.startswith(PLAIN)
    return list(parse_plain(text))


def values(service: Running, name: str, *labels: str) -> dict[tuple[str, ...], float]:
    """Return the values of one metric by these labels, without zeros."""
    return {
        tuple(sample.labels[label] for label in labels): sample.value
        for sample in samples(service)
        if sample.name == name and sample.value
    }
