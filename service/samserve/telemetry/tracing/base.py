"""The port to traces of calls."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from samserve.context import CallFacts
from samserve.stages import Span

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


class Tracing(Protocol):
    """Makes traces of calls."""

    def begin(self, service: str, method: str, metadata: Metadata | None) -> CallTrace:
        """Begin the part of a call whose client may have begun a trace in its *metadata*."""

    async def aclose(self) -> None:
        """Send what is left."""


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
