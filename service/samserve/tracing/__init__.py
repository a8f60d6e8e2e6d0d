"""Traces of calls: the port, and how it is opened.

The SDK of OpenTelemetry is asked for only where traces are wanted; the extra ``tracing`` has it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from samserve.context import CallFacts, Span
from samserve.errors import Misconfigured
from samserve.extras import how_to_install
from samserve.settings import TraceSettings

Metadata = Iterable[tuple[str, str | bytes]]


@dataclass(frozen=True, slots=True)
class CallEnd:
    """What a trace says of a call that has ended; ``code`` is the number of its status."""

    request_id: str
    tenant: str
    code: int
    server_failed: bool
    facts: CallFacts


class CallTrace(Protocol):
    """The part of the server in one trace.

    ``trace_id`` is in hexadecimal, empty if there is none; ``recorded`` tells whether it is sent
    anywhere.  ``span`` is what stages are parts of.
    """

    @property
    def trace_id(self) -> str: ...  # noqa: D102

    @property
    def recorded(self) -> bool: ...  # noqa: D102

    @property
    def span(self) -> Span | None: ...  # noqa: D102

    def end(self, end: CallEnd) -> None:
        """Note that the call is over."""
        ...


class Tracing(Protocol):
    """Makes traces of calls."""

    def begin(self, service: str, method: str, metadata: Metadata | None) -> CallTrace:
        """Begin the part of a call whose client may have begun a trace in its *metadata*."""
        ...

    async def aclose(self) -> None:
        """Send what is left."""
        ...


class NoTracing:
    """Makes no traces."""

    trace_id = ""
    recorded = False
    span: Span | None = None

    def begin(self, service: str, method: str, metadata: Metadata | None) -> CallTrace:
        """See `Tracing.begin`."""
        return self

    def end(self, end: CallEnd) -> None:
        """See `CallTrace.end`."""

    async def aclose(self) -> None:
        """See `Tracing.aclose`."""


def open_tracing(settings: TraceSettings) -> Tracing:
    """Open what the settings ask for.  Raises `Misconfigured`."""
    if not settings.endpoint:
        return NoTracing()
    try:
        from samserve.tracing.otel import OtelTracing  # noqa: PLC0415 - it is optional
    except ImportError as error:
        raise Misconfigured(
            f"trace.endpoint needs the OpenTelemetry SDK, {how_to_install('tracing')}: {error}"
        ) from None
    return OtelTracing(settings)
