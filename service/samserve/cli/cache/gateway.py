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
_CHUNK_BYTES = 1 << 16

_Samples = Mapping[str, Mapping[str, float]]
"""Values by the name of the sample and its one label, which is empty for those without."""


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
    """Get the page, directly: no proxy of the environment has to do with it."""
    deadline = time.monotonic() + _TIMEOUT_S
    connection = HTTPConnection(host, port, timeout=_TIMEOUT_S)
    try:
        connection.request("GET", "/metrics")
        response = connection.getresponse()
        content = b""
        while chunk := response.read1(_CHUNK_BYTES):
            content += chunk
            if time.monotonic() > deadline:
                raise TimeoutError("timed out")
            if len(content) > _MOST_BYTES:
                raise ValueError("is too long for metrics")
    finally:
        connection.close()
    if response.status != 200:
        raise ValueError(f"is answered with {response.status} {response.reason}")
    return content.decode()


def _parse(text: str) -> _Samples:
    samples: dict[str, dict[str, float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name.startswith(("samserve_store_", "samserve_cache_")):
                # The tier before the result, where both are there.
                labels = sorted(sample.labels.items(), reverse=True)
                label = ".".join(value for _, value in labels)
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
    def counts(name: str) -> dict[str, int]:
        found = samples.get(f"samserve_cache_{name}_total", {})
        return {label: int(count) for label, count in sorted(found.items())}

    away = samples.get("samserve_cache_node_away", {})
    return Shared(
        reads={
            label.removeprefix("shared."): count
            for label, count in counts("requests").items()
            if label.startswith("shared.")
        },
        writes=counts("writes"),
        failures=counts("failures"),
        nodes_away=tuple(sorted(node for node, value in away.items() if value)),
    )
