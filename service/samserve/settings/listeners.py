"""Settings of the listeners, authentication, admission and request limits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import Field

from samserve.settings.section import KIB, MIB, Host, Section


class ServerSettings(Section):
    """The API and admin listeners, connection limits and timeouts, and shutdown."""

    host: Host = "127.0.0.1"
    """Address of the API listener: an IPv4 or IPv6 address, or a host name; `::` is every address
    of both families."""
    port: int = Field(default=50051, ge=0, le=65535)
    """Port of the API listener; 0 chooses a free port."""
    admin_host: Host = "127.0.0.1"
    """Address of the admin listener (HTTP: /livez, /readyz, /metrics), in the form of `host`."""
    admin_port: int = Field(default=8081, ge=0, le=65535)
    """Port of the admin listener; 0 chooses a free port."""
    allow_plaintext: bool = False
    """Whether to serve without TLS on an address other than loopback; false requires a
    certificate there."""
    reflection: bool = True
    """Whether gRPC server reflection is enabled, which lets generic clients list and describe the
    services."""
    receive_timeout_s: float = Field(default=60.0, gt=0)
    """Maximum time in seconds to receive a request; the call's deadline applies if it is
    earlier."""
    send_timeout_s: float = Field(default=60.0, gt=0)
    """Maximum time in seconds for a client to accept one response message."""
    max_metadata_bytes: int = Field(default=16 * KIB, ge=4 * KIB, le=MIB)
    """Maximum size in bytes of a call's metadata, credentials included: names, values, and 32 bytes
    for each entry."""
    max_concurrent_streams: int = Field(default=256, ge=1)
    """Maximum concurrent calls of one connection (HTTP/2 streams); more wait at the client."""
    max_connections: int = Field(default=4096, ge=1)
    """Maximum open connections; reduced where the limit on open files (`ulimit -n`) is lower."""
    handshake_timeout_s: float = Field(default=20.0, gt=0)
    """Maximum time in seconds of the TLS handshake, and again of the HTTP/2 handshake, of a new
    connection."""
    idle_timeout_s: float = Field(default=900.0, gt=0)
    """Time in seconds after which a connection without calls is closed."""
    max_connection_age_s: float = Field(default=0.0, ge=0)
    """Age in seconds at which the client is sent GOAWAY and has to reconnect, which rebalances load
    and applies new certificates; 0 disables this."""
    min_ping_interval_s: float = Field(default=10.0, gt=0)
    """Minimum interval in seconds between the pings of a client; clients that ping more often are
    disconnected."""
    readiness: Literal["engine", "started"] = "engine"
    """Condition of readiness: `engine`, the engine is available now; `started`, it has responded
    once. `started` is for gateways that share a Triton, whose outage would otherwise make all of
    them not ready at once."""
    drain_delay_s: float = Field(default=0.0, ge=0)
    """Time in seconds at shutdown between NOT_SERVING and the rejection of new calls, in which load
    balancers remove this server."""
    grace_period_s: float = Field(default=30.0, ge=0)
    """Maximum time in seconds for calls in flight to finish at shutdown, and on a connection that
    reaches its maximum age."""


class TlsSettings(Section):
    """TLS on the API listener; changed files are reloaded."""

    cert_file: Path | None = None
    """Server certificate chain (PEM); enables TLS, together with `key_file`."""
    key_file: Path | None = None
    """Private key of `cert_file` (PEM, not encrypted)."""
    client_ca_file: Path | None = None
    """CA certificates for client certificates (PEM); if set, every client needs a certificate
    (mutual TLS)."""
    client_identities: str = ""
    """Names (DNS or URI) of the client certificates that are accepted, separated by commas; empty
    accepts every certificate of `tls.client_ca_file`."""
    reload_interval_s: float = Field(default=1.0, gt=0)
    """Interval in seconds of checks for changed files of `tls` and `auth`."""

    @property
    def identities(self) -> tuple[str, ...]:
        """The names in `client_identities`."""
        return tuple(name for part in self.client_identities.split(",") if (name := part.strip()))

    def conflicts(self) -> Iterator[str]:
        """See `Section.conflicts`."""
        if (self.cert_file is None) != (self.key_file is None):
            yield "cert_file and key_file must be set together"
        if self.client_ca_file is not None and self.cert_file is None:
            yield "client_ca_file requires cert_file and key_file"
        if self.client_identities and self.client_ca_file is None:
            yield "client_identities requires client_ca_file"


class AuthSettings(Section):
    """Authentication; without API keys, tokens and identities, every client may call."""

    api_keys_file: Path | None = None
    """File of API key hashes, as written by `samserve keys create` (TOML)."""
    jwks_file: Path | None = None
    """File of the public keys (JWKS) that verify bearer tokens."""
    jwt_issuer: str = ""
    """Required value of the token claim `iss`."""
    jwt_audience: str = ""
    """Value that the token claim `aud` must contain."""
    jwt_tenant_claim: str = "tenant"
    """Token claim with the tenant."""
    jwt_roles_claim: str = "roles"
    """Token claim with the roles, a list or a string separated by spaces."""
    jwt_leeway_s: float = Field(default=30.0, ge=0)
    """Maximum difference in seconds between the clocks of issuer and server."""
    policy_file: Path | None = None
    """Policy file with roles, tenants and quotas (TOML); see `docs/security.md`."""

    def conflicts(self) -> Iterator[str]:
        """See `Section.conflicts`."""
        if self.jwks_file is not None and not (self.jwt_issuer and self.jwt_audience):
            yield "jwks_file requires jwt_issuer and jwt_audience"


class DeadlineSettings(Section):
    """Deadlines in seconds of calls without one; a client's own deadline is never changed."""

    embed_s: float = Field(default=60.0, gt=0)
    """Deadline in seconds of Embed calls whose client sets none."""
    predict_s: float = Field(default=60.0, gt=0)
    """Deadline in seconds of Predict calls whose client sets none."""
    automask_s: float = Field(default=900.0, gt=0)
    """Deadline in seconds of AutoMask calls whose client sets none."""
    embedding_files_s: float = Field(default=60.0, gt=0)
    """Deadline in seconds of GetEmbedding and PutEmbedding calls whose client sets none."""
    promotion_s: float = Field(default=900.0, gt=0)
    """Deadline in seconds of PromoteModel calls whose client sets none."""
    other_s: float = Field(default=10.0, gt=0)
    """Deadline in seconds of calls of the other methods whose client sets none."""


class AdmissionSettings(Section):
    """Limits on calls in flight; a call over a limit is rejected at once with RetryInfo."""

    max_concurrent_embed: int = Field(default=128, ge=1)
    """Maximum concurrent Embed calls."""
    max_concurrent_predict: int = Field(default=256, ge=1)
    """Maximum concurrent Predict calls."""
    max_concurrent_automask: int = Field(default=8, ge=1)
    """Maximum concurrent AutoMask calls."""
    max_concurrent_embedding_files: int = Field(default=16, ge=1)
    """Maximum concurrent GetEmbedding calls, and again of PutEmbedding calls."""
    max_concurrent_promotion: int = Field(default=4, ge=1)
    """Maximum concurrent PromoteModel calls."""
    max_concurrent_other: int = Field(default=256, ge=1)
    """Maximum concurrent calls of each other method."""
    max_in_flight_request_bytes: int = Field(default=512 * MIB, ge=1)
    """Maximum bytes of all received requests that are in flight."""
    max_slow_requests: int = Field(default=64, ge=1)
    """Maximum requests that take longer than a second to receive; each may use the memory of
    `limits.max_request_bytes`."""
    max_slow_responses: int = Field(default=64, ge=1)
    """Maximum responses that clients take longer than a second to accept; their calls have released
    their slots, and each may use the memory of `limits.max_response_bytes`."""
    max_prefetches: int = Field(default=64, ge=1)
    """Maximum prefetches, running or queued: images that are encoded without a waiting caller."""
    max_prefetch_bytes: int = Field(default=256 * MIB, ge=1)
    """Maximum bytes of all images of these prefetches, as received."""


class LimitSettings(Section):
    """Limits on single requests; ListModels returns them to clients."""

    max_request_bytes: int = Field(default=64 * MIB, ge=1)
    """Maximum bytes of a request message."""
    max_response_bytes: int = Field(default=64 * MIB, ge=1)
    """Maximum bytes of a response message."""
    max_image_pixels: int = Field(default=50_000_000, ge=1)
    """Maximum pixels of an image."""
    max_image_side: int = Field(default=16_384, ge=1)
    """Maximum pixels of the longer side of an image."""
    max_prompts: int = Field(default=256, ge=1)
    """Maximum prompts of one Predict."""
    max_points: int = Field(default=64, ge=1)
    """Maximum points of one prompt."""
    max_points_per_side: int = Field(default=128, ge=1)
    """Maximum grid points along one side for AutoMask."""
    max_points_per_batch: int = Field(default=1024, ge=1)
    """Maximum grid points of one batch for AutoMask."""
    max_crop_n_layers: int = Field(default=3, ge=0)
    """Maximum crop layers for AutoMask."""
    max_exclude_masks: int = Field(default=1000, ge=0)
    """Maximum masks that one AutoMask excludes."""
