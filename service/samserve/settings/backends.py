"""Settings of the engine, Triton and the embedding cache."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from samserve.settings.section import MIB, Section, Target
from samserve.system.addresses import parse_hosts


class EngineSettings(Section):
    """The engine, which runs the models."""

    kind: Literal["onnx", "triton", "fake"] = "onnx"
    """`onnx` runs models in this process with ONNX Runtime, `triton` on the Triton Inference Server
    at `triton.url`; `fake` draws discs around prompts, for development."""
    model_repository: Path | None = None
    """Directory of the models (`onnx`); unset uses the default model of the package and those that
    `samserve models pull` has stored for this user."""
    models: str = ""
    """Names of the models to serve (`onnx`), separated by commas; empty serves all of them. Each
    model is loaded into memory."""
    threads: int = Field(default=0, ge=0)
    """Threads of one inference (`onnx`); 0 uses one per CPU core."""
    max_prompts_per_batch: int = Field(default=16, ge=1)
    """Maximum prompts of one mask decoder run; bounds memory."""
    automask_batch_s: float = Field(default=0.04, gt=0, le=60)
    """Time of one mask decoder run of AutoMask: it gets as many prompts as take about this long, at
    least one. A Predict waits for one such run at most."""
    max_model_bytes: int = Field(default=0, ge=0)
    """Maximum bytes of weights, by the sizes of their files, while `samserve models promote` loads
    another version: of all models (`onnx`), or of both versions, the new one in each of its
    instances (`triton`). 0 leaves only the memory that is available."""
    default_model: str = ""
    """Model of requests that name none; empty uses the first of `engine.models`, else that of
    `samserve models default`, else the first in alphabetical order, pulled models excluded."""

    def conflicts(self) -> Iterator[str]:
        """See `Section.conflicts`."""
        if self.models and self.kind != "onnx":
            yield (
                f"engine.models requires engine.kind=onnx: the engine {self.kind} serves its own "
                "models, of which engine.default_model selects the default"
            )

    @property
    def model_names(self) -> tuple[str, ...]:
        """The names in `models`."""
        return tuple(filter(None, (name.strip() for name in self.models.split(","))))


class TritonSettings(Section):
    """The Triton Inference Server, for `engine.kind=triton`."""

    url: Target = "127.0.0.1:8001"
    """Address of Triton's gRPC listener as HOST:PORT, an IPv6 address in brackets."""
    shared_memory: Literal["auto", "required", "off"] = "auto"
    """Transport of tensors: `auto` uses shared memory if Triton accepts it and messages otherwise,
    `required` does not start without shared memory, `off` uses messages."""
    shared_memory_group: int | None = Field(default=None, ge=0)
    """Numeric group id of the shared memory segments, for a Triton of another user; unset uses the
    gateway's group."""
    shared_memory_pool_bytes: int = Field(default=256 * MIB, ge=0)
    """Size in bytes of the shared memory pool for images and logits of requests in flight; requests
    beyond it are sent in messages."""
    max_concurrent_encoder_requests: int = Field(default=8, ge=1)
    """Maximum concurrent requests to one image encoder; more requests queue in the gateway."""
    max_concurrent_decoder_requests: int = Field(default=32, ge=1)
    """Maximum concurrent requests to one mask decoder; more requests queue in the gateway."""
    channels: int = Field(default=2, ge=1)
    """Number of connections to Triton; requests are distributed over them."""
    request_timeout_s: float = Field(default=60.0, gt=0)
    """Timeout in seconds of a request; the call's deadline applies if it is earlier."""
    startup_timeout_s: float = Field(default=600.0, ge=0)
    """Maximum time in seconds at startup for Triton to load its models and to respond to a first
    inference of each; after it, this server exits."""
    health_interval_s: float = Field(default=0.5, gt=0)
    """Interval in seconds of Triton health checks, and of checks for changed files below."""
    tls: bool = False
    """Whether connections use TLS; Triton's certificate is verified."""
    ca_file: Path | None = None
    """CA certificates that verify Triton's certificate (PEM); unset uses those of the system."""
    cert_file: Path | None = None
    """Client certificate with its chain (PEM), for a Triton that requires mutual TLS."""
    key_file: Path | None = None
    """Private key (PEM, not encrypted) of `triton.cert_file`."""
    headers_file: Path | None = None
    """File of metadata sent with every request, in lines `name: value`, as
    `--grpc-restricted-protocol` requires."""

    def conflicts(self) -> Iterator[str]:
        """See `Section.conflicts`."""
        yield from _tls_conflicts("triton", self)


class LocalCacheSettings(Section):
    """The local tier of the cache: the memory of this gateway."""

    capacity_bytes: int = Field(default=512 * MIB, ge=1)
    """Maximum bytes of embeddings in memory; beyond it, the least recently used are evicted. An
    embedding has 2 MiB for SAM 1, 6 MiB for SAM-HQ, 8 MiB for SAM 2; less than 32 of the largest
    model served is reported at the start."""


def _tls_conflicts(name: str, section: TritonSettings | SharedCacheSettings) -> Iterator[str]:
    if (section.cert_file is None) != (section.key_file is None):
        missing = "cert_file" if section.cert_file is None else "key_file"
        yield f"{name}.{missing} is missing: certificate and key must be set together"
    if not section.tls:
        unused = [each for each in ("ca_file", "cert_file") if getattr(section, each) is not None]
        yield from (f"{name}.{each} requires {name}.tls=true" for each in unused)


class SharedCacheSettings(Section):
    """The shared tier of the cache, a Redis Cluster or Valkey Cluster of several gateways."""

    nodes: str = ""
    """Seed nodes of the cluster as HOST:PORT (an IPv6 address in brackets), separated by commas;
    the other nodes are discovered. Empty disables the shared tier."""
    key_prefix: str = Field(default="samserve", pattern=r"^[A-Za-z0-9_.-]+$")
    """Prefix of all keys; the same for all gateways that share embeddings."""
    username: str = ""
    """ACL user; empty uses the default user."""
    password_file: Path | None = None
    """File with the password of the user."""
    tls: bool = False
    """Whether connections use TLS; the certificates of the nodes are verified."""
    ca_file: Path | None = None
    """CA certificates that verify those of the nodes (PEM); unset uses those of the system."""
    cert_file: Path | None = None
    """Client certificate with its chain (PEM), for nodes that require mutual TLS."""
    key_file: Path | None = None
    """Private key (PEM, not encrypted) of `cache.shared.cert_file`."""
    timeout_s: float = Field(default=0.5, gt=0)
    """Timeout in seconds of a command, from when it gets a connection. If no command gets a
    response in that time, the node's circuit opens until it responds to a background check."""
    connect_timeout_s: float = Field(default=0.25, gt=0)
    """Timeout in seconds of opening a connection; counts towards `cache.shared.timeout_s`."""
    durability_timeout_s: float = Field(default=1.0, gt=0)
    """Timeout in seconds of a replica's confirmation of a durable write, in addition to
    `cache.shared.timeout_s`; the confirmation of the owner's disk has the same timeout again."""
    durability_level: Literal["replica_and_disk", "replica"] = "replica_and_disk"
    """Required confirmations of a durable embedding. `replica_and_disk`: by a replica, and by the
    append-only file of the node that owns the key. `replica`: by a replica only, for clusters whose
    nodes never restart without their data, which is then not verified."""
    circuit_breaker_failures: int = Field(default=3, ge=1)
    """Consecutive refused or broken connections to a node after which its circuit opens."""
    max_connections_per_node: int = Field(default=8, ge=1)
    """Maximum connections to one node; more commands queue, round robin between tenants."""
    max_in_flight_bytes: int = Field(default=64 * MIB, ge=1)
    """Maximum bytes of embeddings in flight to and from one node; more commands queue. Less than 4
    embeddings of the largest model served is reported at the start. The network must transfer them
    within `cache.shared.timeout_s`."""
    revalidate_interval_s: float = Field(default=0.5, ge=0)
    """Time in seconds for which a local embedding is used without a check whether another gateway
    deleted it."""
    stale_if_error_s: float = Field(default=10.0, ge=0)
    """Time in seconds after its last successful check for which a local embedding is used while the
    cluster is unavailable; should be longer than a failover."""
    topology_refresh_interval_s: float = Field(default=10.0, gt=0)
    """Interval in seconds of refreshes of the cluster topology; redirections and errors refresh it
    sooner."""

    def conflicts(self) -> Iterator[str]:
        """See `Section.conflicts`."""
        yield from _tls_conflicts("cache.shared", self)
        if self.username and self.password_file is None:
            yield "cache.shared.username requires cache.shared.password_file"

    @field_validator("nodes")
    @classmethod
    def _check_addresses(cls, nodes: str) -> str:
        if nodes and not parse_hosts(nodes):
            raise ValueError("must contain at least one node")
        return nodes


class CacheSettings(Section):
    """The embedding cache, in two tiers."""

    ttl_s: float = Field(default=3600.0, gt=0)
    """Time to live of an embedding in seconds, in both tiers; Embed restarts it."""
    local: LocalCacheSettings = LocalCacheSettings()
    """The local tier."""
    shared: SharedCacheSettings = SharedCacheSettings()
    """The shared tier."""
