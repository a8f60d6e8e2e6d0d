"""Settings of the HTTP listener."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from pydantic import Field

from samserve.settings.section import Host, Section

ANY_HOST = "*"

_ORIGIN = re.compile(r"https?://(?:[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
_HOST = re.compile(r"\*|(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")


class HttpSettings(Section):
    """The optional HTTP listener: Connect, gRPC-Web, JSON and downloads. TLS, credentials, limits
    and deadlines are those of the API listener."""

    enabled: bool = False
    """Whether the HTTP listener runs."""
    host: Host = "127.0.0.1"
    """Address of the HTTP listener, in the form of `server.host`."""
    port: int = Field(default=8080, ge=0, le=65535)
    """Port of the HTTP listener; 0 chooses a free port."""
    allowed_hosts: str = ""
    """Names by which clients may address the listener (the header `Host`), separated by commas,
    with or without a port; added to the names of loopback and the listener's own address. `*`
    accepts every name, for networks without browsers."""
    allowed_origins: str = ""
    """Origins of web pages that may call, separated by commas, such as `https://app.example.com`;
    empty allows none but pages of the listener itself."""
    decoder_downloads: str = ""
    """Models whose decoder may be downloaded although their licence is restricted or unknown,
    separated by commas; decoders with a permissive licence may always be."""
    web_page: bool = False
    """Whether to serve the web page; requires `enabled`. Without API keys, tokens or client
    certificates, `host` must be loopback, and every call over HTTP needs a session, which the
    address that `samserve serve` prints begins."""
    web_page_folder: Path | None = None
    """Folder with the files of the web page; empty serves those of the package, or `web/dist` of a
    source checkout."""
    max_connections: int = Field(default=1024, ge=1)
    """Maximum open connections."""
    header_timeout_s: float = Field(default=10.0, gt=0)
    """Maximum time in seconds to receive the headers of a request, and for the first request of a
    connection to begin."""
    idle_timeout_s: float = Field(default=75.0, gt=0)
    """Time in seconds after which a connection without calls is closed."""

    @property
    def hosts(self) -> tuple[str, ...]:
        """The names in `allowed_hosts`, in lower case."""
        return names(self.allowed_hosts.lower())

    @property
    def origins(self) -> tuple[str, ...]:
        """The origins in `allowed_origins`, in lower case."""
        return names(self.allowed_origins.lower())

    @property
    def decoders(self) -> tuple[str, ...]:
        """The names in `decoder_downloads`."""
        return names(self.decoder_downloads)

    def conflicts(self) -> Iterator[str]:
        """See `Section.conflicts`."""
        if self.web_page and not self.enabled:
            yield "web_page requires enabled"
        if self.web_page_folder is not None and not self.web_page:
            yield "web_page_folder requires web_page"
        yield from invalid_names(self.hosts, self.origins)


def invalid_names(hosts: Iterable[str], origins: Iterable[str]) -> Iterator[str]:
    """Yield a text for each name in `allowed_hosts` and `allowed_origins` that is not valid."""
    for origin in origins:
        if not _ORIGIN.fullmatch(origin):
            yield (
                f"allowed_origins: {origin!r} is not an origin, such as https://app.example.com"
                " or http://localhost:3000; wildcards are not supported"
            )
    for host in hosts:
        if not _HOST.fullmatch(host):
            yield f"allowed_hosts: {host!r} is not a host name, an address or *"


def names(text: str) -> tuple[str, ...]:
    """Return the parts of a text that are separated by commas."""
    return tuple(name for part in text.split(",") if (name := part.strip()))
