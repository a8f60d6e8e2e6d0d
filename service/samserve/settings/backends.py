"""Settings of the model runtime and of the stores."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from samserve.settings.section import MIB, Section, Target
from samserve.system.addresses import parse_hosts


class EngineSettings(Section):
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


class TritonSettings(Section):
    """The Triton Inference Server, for `engine.kind=triton`."""

    url: Target = "127.0.0.1:8001"
    """Host and port of its gRPC listener, an IPv6 address in brackets."""
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
    """Time that Triton gets to load its models and to answer a first inference with each, before
    this server gives up."""
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

    def conflicts(self) -> Iterator[str]:
        """See `Section.conflicts`."""
        yield from _tls_conflicts("triton", self)


class StoreSettings(Section):
    """The embedding store."""

    capacity_bytes: int = Field(default=512 * MIB, ge=1)
    """Bytes of embeddings held in memory."""
    ttl_s: float = Field(default=3600.0, gt=0)
    """Time after which an embedding is forgotten; Embed starts it again."""


class CacheSettings(Section):
    """The cache that gateways share: Redis Cluster or Valkey Cluster."""

    nodes: str = ""
    """Some nodes of the cluster as HOST:PORT (an IPv6 address in brackets), separated by commas;
    the others are discovered. Empty: nothing is shared."""
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
    """Time that a replica gets to confirm what was asked to be durable, besides that; the disk of
    the key's owner gets as much."""
    durable_needs: Literal["replica_and_disk", "replica"] = "replica_and_disk"
    """What has to have an embedding before it is called durable: a replica, and the append-only
    file of the key's owner. `replica` is for clusters whose nodes are never restarted without
    their data, which cannot be checked then."""
    breaker_failures: int = Field(default=3, ge=1)
    """Connections refused or broken in a row after which a node is left alone, too."""
    connections: int = Field(default=8, ge=1)
    """Connections to one node; more calls wait, tenants in turns."""
    in_flight_bytes: int = Field(default=64 * MIB, ge=1)
    """Bytes of embeddings on their way to or from one node; more calls wait."""
    check_s: float = Field(default=0.5, ge=0)
    """Time for which an embedding in memory is used without asking whether it was deleted by
    way of another gateway."""
    unconfirmed_s: float = Field(default=10.0, ge=0)
    """Time after the last answer about an embedding in memory for which it is used while the
    cluster cannot be asked whether it was deleted; longer than a failover takes."""
    refresh_s: float = Field(default=10.0, gt=0)
    """Time between two looks at who owns what, if nothing tells of a change."""

    def conflicts(self) -> Iterator[str]:
        """See `Section.conflicts`."""
        yield from _tls_conflicts("cache", self)
        if self.username and self.password_file is None:
            yield "cache.username needs cache.password_file"

    @field_validator("nodes")
    @classmethod
    def _are_addresses(cls, nodes: str) -> str:
        if nodes and not parse_hosts(nodes):
            raise ValueError("names no node")
        return nodes


def _tls_conflicts(name: str, section: TritonSettings | CacheSettings) -> Iterator[str]:
    if (section.cert_file is None) != (section.key_file is None):
        missing = "cert_file" if section.cert_file is None else "key_file"
        yield f"{name}.{missing} is missing: certificate and key go together"
    if not section.tls:
        useless = [each for each in ("ca_file", "cert_file") if getattr(section, each) is not None]
        yield from (f"{name}.{each} is for {name}.tls=true only" for each in useless)
