"""Settings of traces and logs."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from samserve.settings.section import Section


class TraceSettings(Section):
    """Traces of calls, sent as OTLP; needs `pip install samserve[tracing]`."""

    endpoint: str = Field(default="", pattern=r"^(https?://\S+)?$")
    """Receiver that speaks OTLP over gRPC, as `http://HOST:4317`, or `https://` for TLS; empty: no
    traces are made."""
    ca_file: Path | None = None
    """CA certificates (PEM) that may have signed the receiver's; unset takes the system's."""
    ratio: float = Field(default=0.01, ge=0, le=1)
    """Part of the calls that are traced, where the client has not decided that."""
    follow_clients: bool = True
    """Whether what a client says in `traceparent` about sampling decides."""

    @model_validator(mode="after")
    def _ca_is_of_use(self) -> Self:
        if self.ca_file is not None and not self.endpoint.startswith("https://"):
            raise ValueError("trace.ca_file is for an endpoint with https:// only")
        return self


class LogSettings(Section):
    """Logging, to standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe level that is written."""
    format: Literal["json", "console"] = "console"
    """`json` for machines, `console` for people."""
