"""Dashboards for Grafana 10 and later.

An engineer who has never read the code opens one during an incident and knows within a minute which
stage is slow, for which model, and why: queue, encode, decode, cache, transport or client.  So each
title is a question, and each description says how to read the answer and where to go on.
"""

from __future__ import annotations

import warnings

with warnings.catch_warnings():
    # Importing it says that a newer format is to be preferred, which needs Grafana 12.
    warnings.simplefilter("ignore", DeprecationWarning)
    import grafana_foundation_sdk.builders.dashboard
    import grafana_foundation_sdk.builders.prometheus
    import grafana_foundation_sdk.cog.plugins  # noqa: F401

from monitoring.dashboards import cache, latency, overview, triton
from monitoring.dashboards.grafana import to_json


def made() -> dict[str, str]:
    """Make every dashboard, by the name of its file."""
    pages = (overview.page(), latency.page(), cache.page(), triton.page())
    return {f"{page.uid}.json": to_json(page) for page in pages}
