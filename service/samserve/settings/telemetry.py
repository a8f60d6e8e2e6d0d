"""Settings of traces and logs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from samserve.settings.section import Section
from samserve.system.addresses import parse_endpoint


class TraceSettings(Section):
    """Traces of calls, sent as OTLP; needs the extra: `pip install '.[tracing]'` in a clone."""

    endpoint: Annotated[str, AfterValidator(parse_endpoint)] = ""
    """Receiver that speaks OTLP over gRPC, as `http://HOST:4317`, or `https://` for TLS; empty: no
    traces are made."""
    ca_file: Path | None = None
    """CA certificates (PEM) that may have signed the receiver's; unset takes the system's."""
    ratio: float = Field(default=0.01, ge=0, le=1)
    """Part of the calls that are traced, where the client has not decided that."""
    follow_clients: bool = True
    """Whether what a client says in `traceparent` about sampling decides."""

    def conflicts(self) -> Iterator[str]:
        """See `Section.conflicts`."""
        if self.ca_file is not None and not self.endpoint.startswith("https://"):
            yield "trace.ca_file is for an endpoint with https:// only"


class LogSettings(Section):
    """Logging, to standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe level that is written."""
    format: Literal["json", "console"] = "console"
    """`json` for machines, `console` for people."""
