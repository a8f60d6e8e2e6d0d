"""Traces of calls: the port and its factory.

The OpenTelemetry SDK is imported only if tracing is enabled; the extra ``tracing`` installs it.
"""

from __future__ import annotations

from samserve.errors import Misconfigured
from samserve.settings import TraceSettings
from samserve.system.extras import how_to_install
from samserve.telemetry.tracing.base import NoTracing, Tracing


def open_tracing(settings: TraceSettings) -> Tracing:
    """Return the tracing of the settings.  Raises `Misconfigured`."""
    if not settings.endpoint:
        return NoTracing()
    try:
        from samserve.telemetry.tracing.otel import OtelTracing  # noqa: PLC0415 - it is optional
    except ImportError as error:
        raise Misconfigured(
            f"trace.endpoint requires the OpenTelemetry SDK, {how_to_install('tracing')}: {error}"
        ) from None
    return OtelTracing(settings)
