"""Handing on the trace that the caller is in, where OpenTelemetry is installed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

Headers: TypeAlias = tuple[tuple[str, str], ...]


def _none() -> Headers:
    return ()


def _from_opentelemetry() -> Headers:
    carrier: dict[str, str] = {}
    inject(carrier)
    return tuple(carrier.items())


trace_headers: Callable[[], Headers]
"""Gives the metadata that makes a call a part of the current trace; empty without one.

Which headers these are is up to the propagators that the application has chosen; `samserve`
understands W3C's ``traceparent``, the default.
"""
try:
    from opentelemetry.propagate import inject
except ImportError:
    trace_headers = _none
else:
    trace_headers = _from_opentelemetry
