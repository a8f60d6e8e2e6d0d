"""Handing on the trace that the caller is in, where OpenTelemetry is installed."""

from __future__ import annotations

from typing import TypeAlias

try:
    from opentelemetry import propagate
except ImportError:
    propagate = None  # type: ignore[assignment]

Headers: TypeAlias = tuple[tuple[str, str], ...]


def trace_headers() -> Headers:
    """Return the metadata that makes a call a part of the current trace; empty without one.

    Which headers these are is up to the propagators that the application has chosen; `samserve`
    understands W3C's ``traceparent``, the default.
    """
    carrier: dict[str, str] = {}
    if propagate is not None:
        propagate.inject(carrier)
    return tuple(carrier.items())
