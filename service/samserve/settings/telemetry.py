"""Settings of traces and logs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from samserve.settings.section import Section
from samserve.system.addresses import parse_endpoint


class TraceSettings(Section):
    """Traces of calls, exported as OTLP; needs the extra: `pip install '.[tracing]'` in a clone."""

    endpoint: Annotated[str, AfterValidator(parse_endpoint)] = ""
    """OTLP receiver (gRPC) as `http://HOST:4317`, or `https://` for TLS; empty disables tracing."""
    ca_file: Path | None = None
    """CA certificates that verify the receiver's (PEM); unset uses those of the system."""
    sampling_ratio: float = Field(default=0.01, ge=0, le=1)
    """Ratio of calls that are traced, 0 to 1, where a client's `traceparent` does not decide."""
    parent_based: bool = True
    """Whether the sampled flag of a client's `traceparent` decides; false applies
    `trace.sampling_ratio` to every call."""

    def conflicts(self) -> Iterator[str]:
        """See `Section.conflicts`."""
        if self.ca_file is not None and not self.endpoint.startswith("https://"):
            yield "trace.ca_file requires an endpoint with https://"


class LogSettings(Section):
    """Logging, to standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """Lowest severity that is logged."""
    format: Literal["json", "console"] = "console"
    """`json`, one object per line; `console`, text for people."""
