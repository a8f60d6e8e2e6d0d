"""What a running server says of its cache, at its admin listener."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException

from prometheus_client.parser import text_string_to_metric_families

from samserve.cli.errors import CommandError
from samserve.settings import ServerSettings
from samserve.system import addresses

_TIMEOUT_S = 3.0
_MOST_BYTES = 16 << 20

_Samples = Mapping[str, Mapping[str, float]]
"""Values by the name of the sample and its labels, the tier before the result."""


@dataclass(frozen=True, slots=True)
class Memory:
    """The server's own embeddings; hits and misses since it was started."""

    entries: int
    bytes: int
    capacity_bytes: int
    hits: int
    misses: int
    hit_ratio: float | None
    evictions: int


@dataclass(frozen=True, slots=True)
class Shared:
    """What the server has asked of the shared cache since it was started, by how it ended."""

    reads: Mapping[str, int]
    writes: Mapping[str, int]
    failures: Mapping[str, int]
    nodes_away: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Gateway:
    """A server, asked once."""

    memory: Memory
    shared: Shared


def ask(server: ServerSettings) -> Gateway:
    """Read /metrics of the server that has these settings.  Raises `CommandError`."""
    host = addresses.from_here(server.admin_host)
    address = addresses.join(host, server.admin_port)
    if server.admin_port == 0:
        raise CommandError(
            "server.admin_port is 0, any free one: name the one that the server has logged with "
            "--set server.admin_port=PORT"
        )
    try:
        samples = _parse(_fetch(host, server.admin_port))
    except (OSError, HTTPException) as error:
        reason = str(error) or type(error).__name__
        raise CommandError(f"no server at http://{address}/metrics: {reason}") from error
    except ValueError as error:
        raise CommandError(f"http://{address}/metrics: {error}") from error
    return Gateway(_memory(samples), _shared(samples))


def _fetch(host: str, port: int) -> str:
    """Get the page without a proxy that the environment may name."""
    deadline = time.monotonic() + _TIMEOUT_S
    connection = HTTPConnection(host, port, timeout=_TIMEOUT_S)
    try:
        connection.request("GET", "/metrics")
        response = connection.getresponse()
        if response.status != 200:
            raise ValueError(f"is answered with {response.status} {response.reason}")
        content = b""
        while chunk := response.read1():
            content += chunk
            # The timeout of the connection is that of each read.
            if time.monotonic() > deadline:
                raise TimeoutError("timed out")
            if len(content) > _MOST_BYTES:
                raise ValueError("is too long for metrics")
        return content.decode()
    finally:
        connection.close()


def _parse(text: str) -> _Samples:
    samples: dict[str, dict[str, float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            label = ".".join(value for _, value in sorted(sample.labels.items(), reverse=True))
            samples.setdefault(sample.name, {})[label] = sample.value
    if "samserve_store_entries" not in samples:
        raise ValueError("has no metrics of a store, maybe since the server is still starting")
    return samples


def _memory(samples: _Samples) -> Memory:
    def value(name: str) -> int:
        return int(samples.get(f"samserve_store_{name}", {}).get("", 0))

    requests = samples.get("samserve_cache_requests_total", {})
    hits, misses = (int(requests.get(f"memory.{result}", 0)) for result in ("hit", "miss"))
    return Memory(
        entries=value("entries"),
        bytes=value("bytes"),
        capacity_bytes=value("capacity_bytes"),
        hits=hits,
        misses=misses,
        hit_ratio=hits / (hits + misses) if hits + misses else None,
        evictions=value("evictions_total"),
    )


def _shared(samples: _Samples) -> Shared:
    def counts(name: str, prefix: str = "") -> dict[str, int]:
        found = sorted(samples.get(f"samserve_cache_{name}", {}).items())
        return {
            label.removeprefix(prefix): int(count)
            for label, count in found
            if label.startswith(prefix)
        }

    return Shared(
        reads=counts("requests_total", "shared."),
        writes=counts("writes_total"),
        failures=counts("failures_total"),
        nodes_away=tuple(node for node, away in counts("node_away").items() if away),
    )
