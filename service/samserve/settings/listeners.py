"""Settings of the listeners, of who may call, and of what calls may ask for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import Field

from samserve.settings.section import KIB, MIB, Host, Section


class ServerSettings(Section):
    """Listeners, and how their connections are treated."""

    host: Host = "127.0.0.1"
    """Address of the API listener: of IPv4 or IPv6, or a name; `::` is every address of both."""
    port: int = Field(default=50051, ge=0, le=65535)
    """Port of the API listener; 0 takes a free one."""
    admin_host: Host = "127.0.0.1"
    """Address of the admin listener (HTTP: /livez, /readyz, /metrics); as `host`."""
    admin_port: int = Field(default=8081, ge=0, le=65535)
    """Port of the admin listener; 0 takes a free one."""
    plaintext: bool = False
    """Whether to serve without TLS on an address other than loopback."""
    reflection: bool = True
    """Whether generic clients may list and describe the services."""
    receive_s: float = Field(default=60.0, gt=0)
    """Time that a request may take to arrive, if the call's deadline is not sooner."""
    send_s: float = Field(default=60.0, gt=0)
    """Time that a client may take to accept one message of an answer."""
    metadata_bytes: int = Field(default=16 * KIB, ge=4 * KIB, le=MIB)
    """Bytes of the metadata of a call, credentials included: names, values, and 32 for each
    entry."""
    streams: int = Field(default=256, ge=1)
    """Calls that one connection may have open; more wait at the client."""
    connections: int = Field(default=4096, ge=1)
    """Connections that are accepted; fewer where the system lets this process open fewer files."""
    handshake_s: float = Field(default=20.0, gt=0)
    """Time that a new connection gets for TLS, and again for HTTP/2."""
    idle_s: float = Field(default=900.0, gt=0)
    """Time after which a connection without calls is closed."""
    connection_age_s: float = Field(default=0.0, ge=0)
    """Age at which a connection is asked to end and be opened anew, which balances load and brings
    new certificates into force; 0 means never."""
    ping_interval_s: float = Field(default=10.0, gt=0)
    """Clients that ping more often are sent away."""
    readiness: Literal["engine", "started"] = "engine"
    """What readiness takes: `engine`, a model runtime that can be expected to answer now;
    `started`, one that has answered once. The latter is for gateways that share a runtime, whose
    outage would take all of them away at once."""
    drain_s: float = Field(default=0.0, ge=0)
    """Time between saying NOT_SERVING and refusing new calls, for load balancers to notice."""
    grace_s: float = Field(default=30.0, ge=0)
    """Time that running calls get to finish at shutdown, and on a connection that ends for age."""


class TlsSettings(Section):
    """TLS on the API listener; files are read again when they change."""

    cert_file: Path | None = None
    """Certificate chain (PEM); with `key_file` it turns TLS on."""
    key_file: Path | None = None
    """Private key (PEM, not encrypted)."""
    client_ca_file: Path | None = None
    """CAs of client certificates (PEM); with it, only clients with a certificate are let in."""
    client_identities: str = ""
    """Names (DNS or URI) in client certificates that are let in, separated by commas; empty takes
    every certificate of those CAs."""
    reload_s: float = Field(default=1.0, gt=0)
    """Time between two looks at the files of `tls` and `auth`."""

    @property
    def identities(self) -> tuple[str, ...]:
        """`client_identities`, one by one."""
        return tuple(name for part in self.client_identities.split(",") if (name := part.strip()))

    def conflicts(self) -> Iterator[str]:
        """See `Section.conflicts`."""
        if (self.cert_file is None) != (self.key_file is None):
            yield "cert_file and key_file need each other"
        if self.client_ca_file is not None and self.cert_file is None:
            yield "client_ca_file needs cert_file and key_file"
        if self.client_identities and self.client_ca_file is None:
            yield "client_identities needs client_ca_file"


class AuthSettings(Section):
    """Who may call; without keys and tokens, everybody who reaches the API listener."""

    keys_file: Path | None = None
    """API keys as `samserve keys new` makes them (TOML)."""
    jwks_file: Path | None = None
    """Public keys (JWKS) that bearer tokens are signed with."""
    jwt_issuer: str = ""
    """What tokens must have as `iss`."""
    jwt_audience: str = ""
    """What tokens must have in `aud`."""
    jwt_tenant_claim: str = "tenant"
    """Claim that names the tenant."""
    jwt_roles_claim: str = "roles"
    """Claim that lists the roles, as a list or separated by spaces."""
    jwt_leeway_s: float = Field(default=30.0, ge=0)
    """How far the clocks of issuer and server may be apart."""
    policy_file: Path | None = None
    """Roles, tenants and quotas (TOML); see `docs/security.md`."""

    def conflicts(self) -> Iterator[str]:
        """See `Section.conflicts`."""
        if self.jwks_file is not None and not (self.jwt_issuer and self.jwt_audience):
            yield "jwks_file needs jwt_issuer and jwt_audience"


class DeadlineSettings(Section):
    """Deadlines of calls whose client set none; a client's own is never shortened."""

    embed_s: float = Field(default=60.0, gt=0)
    """For Embed."""
    predict_s: float = Field(default=60.0, gt=0)
    """For Predict."""
    automask_s: float = Field(default=900.0, gt=0)
    """For AutoMask."""
    other_s: float = Field(default=10.0, gt=0)
    """For everything else."""


class AdmissionSettings(Section):
    """How many calls may be in flight; one more is refused at once with RetryInfo."""

    embed: int = Field(default=128, ge=1)
    """Concurrent Embed calls."""
    predict: int = Field(default=256, ge=1)
    """Concurrent Predict calls."""
    automask: int = Field(default=8, ge=1)
    """Concurrent AutoMask calls."""
    other: int = Field(default=256, ge=1)
    """Concurrent calls of each other kind."""
    request_bytes: int = Field(default=512 * MIB, ge=1)
    """Bytes of all requests that have arrived and are in flight."""
    slow_requests: int = Field(default=64, ge=1)
    """Requests that may take longer than a second to arrive; each may hold the memory of
    `limits.request_bytes`."""
    slow_answers: int = Field(default=64, ge=1)
    """Answers that a client may take longer than a second to accept, after the call has given its
    place to others; each may hold the memory of `limits.response_bytes`."""
    prefetch: int = Field(default=64, ge=1)
    """Pictures that are encoded, or wait for that, without a caller who waits for them."""
    prefetch_bytes: int = Field(default=256 * MIB, ge=1)
    """Bytes of all those pictures as they were sent."""


class LimitSettings(Section):
    """Limits on single requests, told to clients by ListModels."""

    request_bytes: int = Field(default=64 * MIB, ge=1)
    """Bytes of one request message."""
    response_bytes: int = Field(default=64 * MIB, ge=1)
    """Bytes of one response message."""
    image_pixels: int = Field(default=50_000_000, ge=1)
    """Pixels of an image."""
    image_side: int = Field(default=16_384, ge=1)
    """Pixels along one side of an image."""
    prompts: int = Field(default=256, ge=1)
    """Prompts of one Predict."""
    points: int = Field(default=64, ge=1)
    """Points of one prompt."""
    points_per_side: int = Field(default=128, ge=1)
    """AutoMask grid points along one side."""
    points_per_batch: int = Field(default=1024, ge=1)
    """AutoMask points decoded together."""
    crop_n_layers: int = Field(default=3, ge=0)
    """AutoMask crop layers."""
