"""Dashboards for Grafana 10 and later.

They let an engineer who does not know the code find out within a minute which stage is slow, for
which model, and why: queue, encode, decode, cache, transport or client.  Each description says how
to read the panel and what to check next.
"""

from __future__ import annotations

import warnings

with warnings.catch_warnings():
    # The import warns that a newer format is preferred; that format needs Grafana 12.
    warnings.simplefilter("ignore", DeprecationWarning)
    import grafana_foundation_sdk.builders.dashboard
    import grafana_foundation_sdk.builders.prometheus
    import grafana_foundation_sdk.cog.plugins  # noqa: F401

from monitoring.dashboards import cache, latency, overview, triton
from monitoring.dashboards.grafana import to_json


def render() -> dict[str, str]:
    """Return the text of every dashboard by the name of its file."""
    pages = (overview.page(), latency.page(), cache.page(), triton.page())
    return {f"{page.uid}.json": to_json(page) for page in pages}
