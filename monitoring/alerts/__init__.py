"""All alerts."""

from __future__ import annotations

from collections.abc import Iterator

from monitoring.alerts import budgets, cache, engine, saturation, server
from monitoring.rules import Group


def groups() -> Iterator[Group]:
    """Yield all groups of alerts."""
    yield Group("samserve.budgets", "30s", list(budgets.alerts()))
    yield Group("samserve.server", "30s", list(server.alerts()))
    yield Group("samserve.saturation", "30s", list(saturation.alerts()))
    yield Group("samserve.engine", "30s", list(engine.alerts()))
    yield Group("samserve.cache.alerts", "30s", list(cache.alerts()))
