"""Propagation of the caller's trace, if OpenTelemetry is installed."""

from __future__ import annotations

from typing import TypeAlias

try:
    from opentelemetry import propagate
except ImportError:
    propagate = None  # type: ignore[assignment]

Headers: TypeAlias = tuple[tuple[str, str], ...]


def trace_headers() -> Headers:
    """Return the metadata that makes a call part of the current trace; empty without a trace.

    The headers depend on the propagators of the application; `samserve` reads W3C's
    ``traceparent``, the default.
    """
    carrier: dict[str, str] = {}
    if propagate is not None:
        propagate.inject(carrier)
    return tuple(carrier.items())
