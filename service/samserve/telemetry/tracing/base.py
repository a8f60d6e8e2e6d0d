"""The port for traces of calls."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from samserve.context import CallFacts
from samserve.stages import Span

Metadata = Iterable[tuple[str, str | bytes]]


@dataclass(frozen=True, slots=True)
class CallEnd:
    """Attributes of a call that has ended, for its trace; ``code`` is its numeric status."""

    request_id: str
    tenant: str
    code: int
    server_failed: bool
    facts: CallFacts


class CallTrace(Protocol):
    """The server's span of one call.

    ``trace_id`` is hexadecimal, empty without tracing; ``recorded`` is whether the trace is
    exported.  ``span`` is the parent of the spans of stages.
    """

    @property
    def trace_id(self) -> str: ...  # noqa: D102

    @property
    def recorded(self) -> bool: ...  # noqa: D102

    @property
    def span(self) -> Span | None: ...  # noqa: D102

    def end(self, end: CallEnd) -> None:
        """End the span."""


class Tracing(Protocol):
    """Creates traces of calls."""

    def begin(self, service: str, method: str, metadata: Metadata | None) -> CallTrace:
        """Begin the span of a call; *metadata* may contain the client's trace context."""

    async def aclose(self) -> None:
        """Export the remaining spans."""


class NoTracing:
    """Creates no traces."""

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
