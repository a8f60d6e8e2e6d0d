"""Every setting, once: type, default and meaning; from flags, environment and a TOML file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from samserve.addresses import is_loopback, parse_hosts

MIB = 1 << 20


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class ServerSettings(_Section):
    """Listeners and the manners of the server."""

    host: str = "127.0.0.1"
    """Address of the API listener."""
    port: int = Field(default=50051, ge=0, le=65535)
    """Port of the API listener; 0 takes a free one."""
    admin_host: str = "127.0.0.1"
    """Address of the admin listener (HTTP: /livez, /readyz, /metrics)."""
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
    streams: int = Field(default=256, ge=1)
    """Calls that one connection may have open; more wait at the client."""
    connections: int = Field(default=4096, ge=1)
    """Connections that are accepted; fewer where the system lets this process open fewer files."""
    handshake_s: float = Field(default=20.0, gt=0)
    """Time that a new connection gets for TLS and HTTP/2."""
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


class TlsSettings(_Section):
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

    @model_validator(mode="after")
    def _belong_together(self) -> Self:
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("cert_file and key_file need each other")
        if self.client_ca_file is not None and self.cert_file is None:
            raise ValueError("client_ca_file needs cert_file and key_file")
        if self.client_identities and self.client_ca_file is None:
            raise ValueError("client_identities needs client_ca_file")
        return self


class AuthSettings(_Section):
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

    @model_validator(mode="after")
    def _tokens_have_rules(self) -> Self:
        if self.jwks_file is not None and not (self.jwt_issuer and self.jwt_audience):
            raise ValueError("jwks_file needs jwt_issuer and jwt_audience")
        return self


class DeadlineSettings(_Section):
    """Deadlines of calls whose client set none; a client's own is never shortened."""

    embed_s: float = Field(default=60.0, gt=0)
    """For Embed."""
    predict_s: float = Field(default=60.0, gt=0)
    """For Predict."""
    automask_s: float = Field(default=900.0, gt=0)
    """For AutoMask."""
    other_s: float = Field(default=10.0, gt=0)
    """For everything else."""


class AdmissionSettings(_Section):
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
    prefetch: int = Field(default=64, ge=1)
    """Pictures that are encoded, or wait for that, without a caller who waits for them."""
    prefetch_bytes: int = Field(default=256 * MIB, ge=1)
    """Bytes of all those pictures as they were sent."""


class LimitSettings(_Section):
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


class EngineSettings(_Section):
    """The model runtime."""

    kind: Literal["onnx", "triton", "fake"] = "onnx"
    """`onnx` runs models in this process, `triton` asks the server that `triton.url` names,
    `fake` draws discs around prompts, for development."""
    model_repository: Path | None = None
    """Folder of the models (`onnx`); unset takes the default model that comes with the package."""
    threads: int = Field(default=0, ge=0)
    """Threads of one model run (`onnx`); 0 takes one per core."""
    prompts_per_run: int = Field(default=16, ge=1)
    """Prompts decoded in one run at most, which bounds memory and how long a click waits."""
    default_model: str = ""
    """Model of requests that name none; empty takes the first in alphabetical order."""


class TritonSettings(_Section):
    """The Triton Inference Server, for `engine.kind=triton`."""

    url: str = "127.0.0.1:8001"
    """Host and port of its gRPC listener."""
    shared_memory: Literal["auto", "required", "off"] = "auto"
    """`auto` shares memory with a Triton that accepts it and else sends tensors in messages,
    `required` refuses to start without it."""
    shared_memory_group: int | None = Field(default=None, ge=0)
    """Numeric group that owns the segments, for a Triton of another user; unset keeps ours."""
    scratch_bytes: int = Field(default=256 * MIB, ge=0)
    """Bytes of shared memory for pictures and logits under way; beyond it they go in messages."""
    encoder_in_flight: int = Field(default=8, ge=1)
    """Requests of one image encoder that Triton is given at once; more wait here."""
    decoder_in_flight: int = Field(default=32, ge=1)
    """Requests of one mask decoder that Triton is given at once; more wait here."""
    channels: int = Field(default=2, ge=1)
    """Connections that share the requests."""
    answer_s: float = Field(default=60.0, gt=0)
    """Time after which a request counts as lost, if the call's deadline is not sooner."""
    startup_s: float = Field(default=600.0, ge=0)
    """Time that Triton gets to load its models before this server gives up."""
    health_interval_s: float = Field(default=0.5, gt=0)
    """Time between two looks at Triton's health, and at the files below."""
    tls: bool = False
    """Whether the connections are encrypted, and Triton's certificate is verified."""
    ca_file: Path | None = None
    """CA certificates (PEM) that may have signed Triton's; unset takes the system's."""
    cert_file: Path | None = None
    """Client certificate (PEM, then its chain) for a Triton that asks for one."""
    key_file: Path | None = None
    """Private key (PEM, not encrypted) of `triton.cert_file`."""
    headers_file: Path | None = None
    """Lines `name: value`, sent with every request: what `--grpc-restricted-protocol` expects."""

    @model_validator(mode="after")
    def _certificates_make_sense(self) -> Self:
        if (self.cert_file is None) != (self.key_file is None):
            missing = "cert_file" if self.cert_file is None else "key_file"
            raise ValueError(f"triton.{missing} is missing: certificate and key go together")
        useless = [name for name in ("ca_file", "cert_file") if getattr(self, name) is not None]
        if useless and not self.tls:
            raise ValueError(f"triton.{useless[0]} is for triton.tls=true only")
        return self


class StoreSettings(_Section):
    """The embedding store."""

    capacity_bytes: int = Field(default=512 * MIB, ge=1)
    """Bytes of embeddings held in memory."""
    ttl_s: float = Field(default=3600.0, gt=0)
    """Time after which an embedding is forgotten; Embed starts it again."""


class CacheSettings(_Section):
    """The cache that gateways share: Redis Cluster or Valkey Cluster."""

    nodes: str = ""
    """Some nodes of the cluster as HOST:PORT, separated by commas; the others are discovered.
    Empty: nothing is shared."""
    prefix: str = Field(default="samserve", pattern=r"^[A-Za-z0-9_.-]+$")
    """How all keys begin; gateways that share embeddings have the same."""
    username: str = ""
    """ACL user; empty takes the default user."""
    password_file: Path | None = None
    """File with the user's password."""
    tls: bool = False
    """Whether the connections are encrypted, and the nodes' certificates are verified."""
    ca_file: Path | None = None
    """CA certificates (PEM) that may have signed the nodes'; unset takes the system's."""
    cert_file: Path | None = None
    """Client certificate (PEM, then its chain) for nodes that ask for one."""
    key_file: Path | None = None
    """Private key (PEM, not encrypted) of `cache.cert_file`."""
    timeout_s: float = Field(default=0.5, gt=0)
    """Time that a node gets for an answer, once it is a call's turn; if nobody gets one in that
    time, it is left alone until it answers in the background."""
    connect_s: float = Field(default=0.25, gt=0)
    """Time that a connection may take to open, a part of `cache.timeout_s`."""
    durable_s: float = Field(default=1.0, gt=0)
    """Time that a replica gets to confirm what was asked to be durable, besides that."""
    breaker_failures: int = Field(default=3, ge=1)
    """Connections refused or broken in a row after which a node is left alone, too."""
    connections: int = Field(default=8, ge=1)
    """Connections to one node; more calls wait, tenants in turns."""
    in_flight_bytes: int = Field(default=64 * MIB, ge=1)
    """Bytes of embeddings on their way to or from one node; more calls wait."""
    check_s: float = Field(default=0.5, ge=0)
    """Time for which an embedding in memory is used without asking whether it was deleted by
    way of another gateway."""
    refresh_s: float = Field(default=10.0, gt=0)
    """Time between two looks at who owns what, if nothing tells of a change."""

    @model_validator(mode="after")
    def _belong_together(self) -> Self:
        if (self.cert_file is None) != (self.key_file is None):
            missing = "cert_file" if self.cert_file is None else "key_file"
            raise ValueError(f"cache.{missing} is missing: certificate and key go together")
        useless = [name for name in ("ca_file", "cert_file") if getattr(self, name) is not None]
        if useless and not self.tls:
            raise ValueError(f"cache.{useless[0]} is for cache.tls=true only")
        if self.username and self.password_file is None:
            raise ValueError("cache.username needs cache.password_file")
        return self

    @field_validator("nodes")
    @classmethod
    def _are_addresses(cls, nodes: str) -> str:
        if nodes and not parse_hosts(nodes):
            raise ValueError("names no node")
        return nodes


class TraceSettings(_Section):
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


class LogSettings(_Section):
    """Logging, to standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe level that is written."""
    format: Literal["json", "console"] = "console"
    """`json` for machines, `console` for people."""


class Settings(BaseSettings):
    """All settings.

    `SAMSERVE_STORE__TTL_S=60` in the environment, `ttl_s = 60` under `[store]` in the file that
    `--config` names, and `--set store.ttl_s=60` on the command line say the same thing; the
    command line wins over the environment, the environment over the file.
    """

    model_config = SettingsConfigDict(
        env_prefix="SAMSERVE_", env_nested_delimiter="__", extra="forbid", frozen=True
    )

    server: ServerSettings = ServerSettings()
    tls: TlsSettings = TlsSettings()
    auth: AuthSettings = AuthSettings()
    deadlines: DeadlineSettings = DeadlineSettings()
    admission: AdmissionSettings = AdmissionSettings()
    limits: LimitSettings = LimitSettings()
    engine: EngineSettings = EngineSettings()
    triton: TritonSettings = TritonSettings()
    store: StoreSettings = StoreSettings()
    cache: CacheSettings = CacheSettings()
    trace: TraceSettings = TraceSettings()
    log: LogSettings = LogSettings()

    @model_validator(mode="after")
    def _plaintext_is_wanted(self) -> Self:
        open_to_others = not is_loopback(self.server.host) and not self.server.plaintext
        if open_to_others and self.tls.cert_file is None:
            raise ValueError(
                f"server.host {self.server.host} is not loopback: give tls.cert_file and "
                "tls.key_file, or server.plaintext=true where the network is trusted"
            )
        return self


def load(overrides: dict[str, Any] | None = None, file: Path | None = None) -> Settings:
    """Read the settings; *overrides* is nested as the sections are and wins.

    Raises `pydantic.ValidationError`, which names every wrong or unknown setting at once.
    """

    class FromFile(Settings):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            sources = (init_settings, env_settings)
            return sources if file is None else (*sources, TomlConfigSettingsSource(cls, file))

    return FromFile(**(overrides or {}))
