"""Settings of `samserve bridge`: a root of their own, read as those of the server are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from samserve.bridge.fetching.settings import FetchSettings
from samserve.bridge.tools.label_studio.settings import LabelStudioSettings
from samserve.settings.http import invalid_names, names
from samserve.settings.listeners import TlsSettings
from samserve.settings.section import KIB, MIB, Host, Section
from samserve.settings.telemetry import LogSettings
from samserve.system.addresses import ANY_PORT, is_local_target, is_loopback, parse_target


class ListenerSettings(Section):
    """The HTTP listener of the tools, its admin listener, and shutdown."""

    host: Host = "127.0.0.1"
    """Address of the listener: an IPv4 or IPv6 address, or a host name; `::` is every address of
    both families."""
    port: int = Field(default=9090, ge=0, le=65535)
    """Port of the listener; 0 chooses a free port."""
    admin_host: Host = "127.0.0.1"
    """Address of the admin listener (HTTP: /livez, /readyz, /metrics), in the form of `host`."""
    admin_port: int = Field(default=9091, ge=0, le=65535)
    """Port of the admin listener; 0 chooses a free port."""
    allow_plaintext: bool = False
    """Whether to serve without TLS on an address other than loopback; false requires a
    certificate there."""
    allowed_hosts: str = ""
    """Names by which tools may address the bridge (the header `Host`), separated by commas, with
    or without a port; added to the names of loopback and the listener's own address. `*` accepts
    every name, for networks without browsers."""
    allowed_origins: str = ""
    """Origins of web pages that may call, separated by commas, such as `https://app.example.com`;
    the tools call from their servers or programs, and need none."""
    max_connections: int = Field(default=1024, ge=1)
    """Maximum open connections."""
    header_timeout_s: float = Field(default=10.0, gt=0)
    """Maximum time in seconds to receive the headers of a request, and for the first request of a
    connection to begin."""
    idle_timeout_s: float = Field(default=75.0, gt=0)
    """Time in seconds after which a connection without requests is closed."""
    handshake_timeout_s: float = Field(default=20.0, gt=0)
    """Maximum time in seconds of the TLS handshake of a new connection."""
    receive_timeout_s: float = Field(default=60.0, gt=0)
    """Maximum time in seconds to receive a request."""
    send_timeout_s: float = Field(default=60.0, gt=0)
    """Maximum time in seconds for a client to accept a response."""
    max_metadata_bytes: int = Field(default=16 * KIB, ge=4 * KIB, le=MIB)
    """Maximum size in bytes of the headers of a request: names, values, and 32 bytes for each."""
    grace_period_s: float = Field(default=30.0, ge=0)
    """Maximum time in seconds for requests in flight to finish at shutdown."""

    @property
    def hosts(self) -> tuple[str, ...]:
        """The names in `allowed_hosts`, in lower case."""
        return names(self.allowed_hosts.lower())

    @property
    def origins(self) -> tuple[str, ...]:
        """The origins in `allowed_origins`, in lower case."""
        return names(self.allowed_origins.lower())

    def conflicts(self) -> Iterator[str]:
        """See `Section.conflicts`."""
        yield from invalid_names(self.hosts, self.origins)
        if self.port == self.admin_port != ANY_PORT:
            yield f"port and admin_port are both {self.port}: they must differ"


class GatewaySettings(Section):
    """The gateways, which the bridge calls over gRPC."""

    targets: str = "127.0.0.1:50051"
    """Addresses of the gateways as HOST:PORT, separated by commas, an IPv6 address in brackets. All
    requests about an image go to the same one while it is available. A name that stands for several
    gateways distributes them, and needs a shared cache."""
    model: str = ""
    """Model of requests whose tool names none; empty is the gateways' default model."""
    tls: bool = False
    """Whether connections use TLS; the certificates of the gateways are verified."""
    ca_file: Path | None = None
    """CA certificates that verify those of the gateways (PEM); unset uses those of the system."""
    cert_file: Path | None = None
    """Client certificate with its chain (PEM), for gateways that require mutual TLS."""
    key_file: Path | None = None
    """Private key (PEM, not encrypted) of `cert_file`."""
    server_name: str = ""
    """Expected name in the certificates of the gateways; empty uses the hosts of `targets`."""
    allow_plaintext: bool = False
    """Whether credentials may be sent without TLS to gateways on other machines."""
    retry_interval_s: float = Field(default=2.0, gt=0)
    """Time in seconds for which a gateway that is unavailable is called only if all others are, or
    there are none."""

    @property
    def addresses(self) -> tuple[str, ...]:
        """The addresses in `targets`."""
        return names(self.targets)

    def conflicts(self) -> Iterator[str]:
        """See `Section.conflicts`."""
        if not self.addresses:
            yield "targets: at least one gateway is needed"
        if len(set(self.addresses)) < len(self.addresses):
            yield "targets: a gateway is listed twice"
        for target in self.addresses:
            try:
                parse_target(target)
            except ValueError as error:
                yield f"targets: {error}"
        if (self.cert_file is None) != (self.key_file is None):
            yield "cert_file and key_file must be set together"
        if not self.tls and (self.ca_file or self.cert_file):
            yield "ca_file, cert_file and key_file require tls=true"
        remote = next((each for each in self.addresses if not is_local_target(each)), None)
        if remote is not None and not (self.tls or self.allow_plaintext):
            yield (
                f"targets: {remote} is not on this machine: set tls=true, or allow_plaintext=true "
                "if the network is trusted"
            )


class TokenSettings(Section):
    """The credentials of the tools' requests, and the credentials of samserve for them."""

    file: Path | None = None
    """File that maps the tools' tokens to credentials of samserve (TOML), see `docs/tools.md`;
    unset passes the token of a request on as the credential."""
    credential_file: Path | None = None
    """File with the API key or token for requests without a token; unset sends none for them, or
    refuses them if there is a `file`."""


class LimitSettings(Section):
    """Limits of requests, and of what the bridge keeps."""

    max_request_bytes: int = Field(default=64 * MIB, ge=1)
    """Maximum bytes of a request; an image in it is a third larger than its file."""
    max_in_flight_request_bytes: int = Field(default=256 * MIB, ge=1)
    """Maximum bytes of all requests in flight, as far as they are received."""
    max_image_bytes: int = Field(default=48 * MIB, ge=1)
    """Maximum bytes of an image, wherever it comes from. Its pixels are limited by the gateways."""
    max_concurrent_requests: int = Field(default=256, ge=1)
    """Maximum requests in flight; more are rejected."""
    max_concurrent_conversions: int = Field(default=2, ge=1)
    """Maximum images that are converted to PNG at the same time; more wait."""
    max_held_images: int = Field(default=4096, ge=1)
    """Maximum embedding ids that are kept, for each name of an image, such as its URL, and for its
    content; beyond it, the least recently used are forgotten, which costs an Embed with the hash
    of the image."""
    deadline_s: float = Field(default=90.0, gt=0)
    """Maximum time in seconds of a request, for tools that do not wait for a longer time. Label
    Studio waits for 100 s."""


class BridgeSettings(BaseSettings):
    """All settings of `samserve bridge`.

    `SAMSERVE_BRIDGE_LISTENER__PORT=80` in the environment, `port = 80` under `[listener]` in the
    file of `--config` or `SAMSERVE_BRIDGE_CONFIG`, and `--set listener.port=80` on the command line
    are equivalent.  The command line overrides the environment, the environment overrides the file.
    """

    model_config = SettingsConfigDict(
        env_prefix="SAMSERVE_BRIDGE_", env_nested_delimiter="__", extra="forbid", frozen=True
    )

    listener: ListenerSettings = ListenerSettings()
    tls: TlsSettings = TlsSettings()
    gateways: GatewaySettings = GatewaySettings()
    tokens: TokenSettings = TokenSettings()
    fetch: FetchSettings = FetchSettings()
    label_studio: LabelStudioSettings = LabelStudioSettings()
    limits: LimitSettings = LimitSettings()
    log: LogSettings = LogSettings()

    @model_validator(mode="after")
    def _check_plaintext(self) -> BridgeSettings:
        host = self.listener.host
        exposed = not is_loopback(host) and not self.listener.allow_plaintext
        if exposed and self.tls.cert_file is None:
            raise ValueError(
                f"listener.host {host} is not loopback: set tls.cert_file and tls.key_file, or "
                "listener.allow_plaintext=true if the network is trusted"
            )
        return self
